"""The classifier of a language model, and what is proved of it before it is measured.

A model is measured as logits = softcap(scale * (x @ weight.T) + bias), where x at a position is made of the tokens up
to it. None of it follows from a configuration, so all of it is tried out on a few tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CommandError
from ..model import (
    NeverReached,
    causal_tolerance,
    features_into,
    moved_by_later_tokens,
    stated_scales,
    stated_softcap,
    text_config,
)

LARGE = 1e4
"""What products are stretched to: a cap that does not bend them matters nowhere."""
STEPS = 20
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4}
UNREACHED = "MODEL: its forward pass never reaches its output embedding, so the features cannot be read"


class Head(NamedTuple):
    """The classifier of a model. ``features``, "base" or "interrupted", says how its input is reached: `find_head`.

    ``ignored`` is a soft cap that the model has and that is not measured, ``fitted`` names what was found in the logits
    and is stated nowhere.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    features: str
    softcap: float | None = None
    ignored: float | None = None
    fitted: tuple[str, ...] = ()

    def remarks(self) -> list[str]:
        """Sentences for the reader of a report."""
        told = []
        if self.ignored is not None:
            told.append(
                f"Logits are measured before the model's soft cap of {self.ignored:g}: NLL, entropy and margins are "
                "not its own."
            )
        found = {"scale": self.scale, "softcap": self.softcap or self.ignored}
        if self.fitted:
            numbers = " and ".join(f"{name} {found[name]:g}" for name in self.fitted)
            told.append(
                f"The model's logits have {numbers}, which its configuration does not state: fitted to its own logits."
            )
        return told


class Sample(NamedTuple):
    """Products of what entered the output embedding with its rows, and the logits that the model made of them.

    ``tolerance`` is what roundings may move these by, in parts of the largest.
    """

    products: Tensor
    logits: Tensor
    offset: Tensor | float
    tolerance: float

    def made(self, scale: float, softcap: float | None) -> Tensor:
        z = scale * self.products + self.offset
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    def error(self, scale: float, softcap: float | None) -> float:
        """How far these logits are from the model's, in parts of the largest."""
        rest = self.made(scale, softcap) - self.logits
        return float(rest.abs().max() / self.logits.abs().max().clamp_min(1e-30))


def interrupted_features(model: nn.Module, **inputs: Any) -> Tensor:
    """The input of the output embedding; the forward pass is stopped there, so that the logits are never computed."""
    with features_into(model.get_output_embeddings()) as trap:
        try:
            return trap.run(lambda: model(**inputs))
        except NeverReached:
            raise CommandError(UNREACHED) from None


@torch.no_grad()
def find_head(model: nn.Module, ids: Tensor, *, ignore_softcap: bool = False) -> Head:
    """Finds the classifier and what is made of its products, and proves on ``ids`` (1, T), T small, that it is all.

    The full model runs twice, or three times where a cap bends its logits: as it is, and with what enters its output
    embedding stretched, so that a cap shows that the model's own features never reach. All logits must equal
    softcap(scale * (x @ weight.T) + bias). If the base model's last hidden state is x, only the base model runs from
    then on ("base"); if the head transforms it first, the whole forward pass runs and is stopped before the logits
    ("interrupted"). Then the later half of the tokens is exchanged, at which no feature before them may move.

    Args:
        ignore_softcap: leave the cap out of the head, which then makes the logits before it.

    Raises:
        CommandError: if there is no output embedding, the logits are no such function of its input (adapters on it,
            other steps after it), or the features know the tokens that come after them.
    """
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise CommandError(
            "MODEL: it has no output embedding with a (vocabulary, dim) weight, so there is no classifier to measure"
        )
    bias = getattr(module, "bias", None)
    x, natural = _sample(model, ids)
    scale, softcap, fitted = _proved(model, ids, natural)
    bias = None if bias is None else bias.detach()
    kept, ignored = (None, softcap) if ignore_softcap else (softcap, None)
    head = Head(weight.detach(), bias, scale, _route(model, x, ids), kept, ignored, fitted)
    _prove_causal(model, head, ids)
    return head


def _sample(model: nn.Module, ids: Tensor, size: float | None = None) -> tuple[Tensor, Sample]:
    """What enters the output embedding, and a sample; ``size``: stretched until its largest product has it."""
    module = model.get_output_embeddings()
    weight, bias = module.weight, getattr(module, "bias", None)
    entered: list[Tensor] = []

    def products(x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(weight.device), weight.to(x.dtype))

    def enter(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        if size is not None:
            most = torch.finfo(x.dtype).max / 2 / float(x.abs().max().clamp_min(1e-30))  # float16 ends at 65504
            x = x * min(size / float(products(x).abs().max().clamp_min(1e-30)), most)
        entered.append(x)
        return (x, *args[1:])

    handle = module.register_forward_pre_hook(enter)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.to(weight.device)
    finally:
        handle.remove()
    if not entered:
        raise CommandError(UNREACHED)
    x = entered[0]
    if logits.shape != (*x.shape[:-1], weight.shape[0]):
        raise CommandError(
            f"MODEL: its output embedding with {weight.shape[0]} rows is given {tuple(x.shape)}, and its logits are "
            f"{tuple(logits.shape)}: not one for each row"
        )
    coarsest = max(TOLERANCES.get(dtype, 3e-2) for dtype in (x.dtype, logits.dtype))
    offset = 0.0 if bias is None else bias.double()
    return x, Sample(products(x).flatten(0, -2).double(), logits.flatten(0, -2).double(), offset, coarsest)


def _proved(model: nn.Module, ids: Tensor, natural: Sample) -> tuple[float, float | None, tuple[str, ...]]:
    """Scale and soft cap, and which of them nothing states; raises CommandError where none make the logits."""
    config, tolerance = text_config(model), natural.tolerance
    scales = stated_scales(config)
    large = _sample(model, ids, LARGE)[1]
    samples, fitted = [natural, large], []
    scale, softcap = _slope(large.products, large.logits - large.offset), None
    if not large.error(scale, None) <= tolerance:
        softcap = float(large.logits.abs().max())  # which is the cap, if it is one; else no fit will do
        inside = natural.logits.abs() < 0.9 * softcap
        bare = softcap * torch.atanh(natural.logits / softcap) - natural.offset
        scale = _slope(natural.products[inside], bare[inside])
        samples.append(_sample(model, ids, 2 * softcap / max(scale, 1e-30))[1])
        scale, softcap = _fit(samples[-1], scale, softcap)
        caps = [(stated_softcap(config) or 0.0) * factor for factor in scales]  # the factor may come after the cap
        softcap = _stated(softcap, caps, tolerance, "softcap", fitted)
    scale = _stated(scale, scales, tolerance, "scale", fitted)
    errors = [sample.error(scale, softcap) for sample in samples]
    if not all(error <= tolerance for error in errors):  # NaN is not
        raise CommandError(
            "MODEL: its logits are not softcap(scale * (x @ weight.T) + bias) of its output embedding (off by "
            f"{max(errors):.1e} on {ids.shape[1]} tokens): an adapter on it, or a step after it, is not measured"
        )
    return scale, softcap, tuple(fitted)


def _slope(products: Tensor, logits: Tensor) -> float:
    return float((products * logits).sum() / (products * products).sum())


def _stated(value: float, stated: Sequence[float], tolerance: float, name: str, fitted: list[str]) -> float:
    """The stated value that ``value`` is near to; else the roundest near it, and its name is put down as fitted."""
    for known in stated:
        if known and abs(value / known - 1) <= tolerance / 8:  # a fit to many logits is finer than each of them
            return known
    fitted.append(name)
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 18))  # so that runs on other tokens have the same
    return next((near for near in rounded if abs(near - value) <= tolerance / 64 * abs(value)), value)


def _fit(sample: Sample, scale: float, softcap: float) -> tuple[float, float]:
    """Scale and cap by least squares, from near values on: Gauss's steps in their logarithms."""
    few = slice(None, None, max(1, sample.logits.numel() // 65536))
    products, logits = sample.products.flatten()[few], sample.logits.flatten()[few]
    offset = (sample.offset + torch.zeros_like(sample.products)).flatten()[few]
    for _ in range(STEPS):
        z = scale * products + offset
        tanh = torch.tanh(z / softcap)
        bend = 1 - tanh * tanh
        slopes = torch.stack([scale * products * bend, softcap * tanh - z * bend])
        step = torch.linalg.solve_ex(slopes @ slopes.T, slopes @ (logits - softcap * tanh)).result.clamp(-1, 1).exp()
        scale, softcap = scale * float(step[0]), softcap * float(step[1])
    return scale, softcap


def _prove_causal(model: nn.Module, head: Head, ids: Tensor) -> None:
    """Raises CommandError where features move when tokens after them are exchanged."""
    mask = torch.ones_like(ids)
    moved = moved_by_later_tokens(lambda tokens: body(model, head, tokens, mask)[0], ids, head.weight.shape[0])
    if not moved <= causal_tolerance(head.weight.dtype):
        raise CommandError(
            f"MODEL: {type(model).__name__} is not causal: its features move by {moved:.1%} when later tokens change, "
            "so it sees the token that it would be measured at predicting (for a BERT-like model, is_decoder is false)"
        )


def _route(model: nn.Module, x: Tensor, ids: Tensor) -> str:
    base = model.base_model
    if base is model:
        return "interrupted"
    hidden = getattr(base(input_ids=ids, use_cache=False), "last_hidden_state", None)
    same = (
        hidden is not None
        and hidden.shape == x.shape
        and torch.allclose(hidden.float(), x.float(), rtol=1e-3, atol=1e-4)
    )
    return "base" if same else "interrupted"


def body(
    model: nn.Module, head: Head, input_ids: Tensor, attention_mask: Tensor, hidden: bool = False
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The features (B, T, D) that enter the head, on its device, and, if asked for, all hidden states."""
    first = next(model.parameters()).device  # of a model on several devices
    options = {"input_ids": input_ids.to(first), "attention_mask": attention_mask.to(first), "use_cache": False}
    if head.features == "base":
        out = model.base_model(**options, output_hidden_states=hidden)
        return out.last_hidden_state.to(head.weight.device), out.hidden_states if hidden else None
    features = interrupted_features(model, **options).to(head.weight.device)
    return features, model.base_model(**options, output_hidden_states=True).hidden_states if hidden else None
