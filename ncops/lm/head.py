"""The classifier of a language model, and what is proved of it before it is measured.

A model is measured as logits = scale * (x @ weight.T) + bias, where x at a position is made of the tokens up to it.
Neither follows from a configuration, so both are tried out on a few tokens.
"""

from __future__ import annotations

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


class Head(NamedTuple):
    """The classifier of a model. ``features``, "base" or "interrupted", says how its input is reached: `find_head`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    features: str
    softcap: float | None = None


def interrupted_features(model: nn.Module, **inputs: Any) -> Tensor:
    """The input of the output embedding; the forward pass is stopped there, so that the logits are never computed."""
    with features_into(model.get_output_embeddings()) as trap:
        try:
            return trap.run(lambda: model(**inputs))
        except NeverReached:
            raise CommandError(
                "MODEL: its forward pass never reaches its output embedding, so the features cannot be read"
            ) from None


@torch.no_grad()
def find_head(model: nn.Module, ids: Tensor, *, ignore_softcap: bool = False) -> Head:
    """Finds weight, bias and scale of the classifier, and proves on ``ids`` (1, T), T small, that they are all of it.

    The full model runs once: its logits must equal scale * (x @ weight.T) + bias for the x that enters the output
    embedding. If the base model's last hidden state is that x, only the base model runs from then on ("base"); if the
    head transforms it first, the whole forward pass runs and is stopped before the logits ("interrupted"). Then the
    later half of the tokens is exchanged, at which no feature before them may move.

    Raises:
        CommandError: if there is no output embedding, the logits are no linear function of its input (soft caps,
            adapters), or the features know the tokens that come after them.
    """
    module = model.get_output_embeddings()
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        raise CommandError(
            "MODEL: it has no output embedding with a (vocabulary, dim) weight, so there is no classifier to measure"
        )
    bias = getattr(module, "bias", None)
    options = {"input_ids": ids, "use_cache": False}
    x = interrupted_features(model, **options)
    logits = model(**options).logits.reshape(-1, weight.shape[0])
    softcap = stated_softcap(text_config(model))
    if softcap and not ignore_softcap:
        raise CommandError(
            f"MODEL: its logits are soft-capped at {softcap:g}, which no linear classifier expresses: NLL, entropy and "
            "margins would be wrong. --ignore-softcap measures the logits before the cap"
        )
    products = nn.functional.linear(x.reshape(-1, x.shape[-1]), weight.to(x.dtype)).double()
    offset = 0.0 if bias is None else bias.double()
    scale = 1.0 if softcap else _proved_scale(model, products, logits.double() - offset, x.dtype)
    bias = None if bias is None else bias.detach()
    head = Head(weight.detach(), bias, scale, _route(model, x, options), softcap)
    _prove_causal(model, head, ids)
    return head


def _proved_scale(model: nn.Module, products: Tensor, logits: Tensor, dtype: torch.dtype) -> float:
    """The factor that makes ``logits`` of ``products``; raises CommandError where no factor does."""
    fitted = float((products * logits).sum() / (products * products).sum())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(dtype, 3e-2)
    stated = (s for s in stated_scales(text_config(model)) if abs(fitted / s - 1) <= tolerance)
    scale = next(stated, fitted)
    rest = logits - scale * products
    size = logits.abs().max().clamp_min(1e-30)
    error = float(rest.abs().max() / size)
    if not error <= tolerance:
        raise CommandError(
            f"MODEL: its logits are not scale * (x @ weight.T) + bias of its output embedding (off by {error:.1e} on "
            f"{len(logits)} tokens): an adapter on it, or a step after it, is not measured"
        )
    # Half precision hides a soft cap, c tanh(z / c) = z - z^3 / 3c^2 ..., below its roundings in every single logit,
    # but not in all of them together.
    cubes = (products / size) ** 3
    cubes -= (cubes * products).sum() / (products * products).sum() * products
    bend = float((cubes * rest).sum() / (cubes * cubes).sum())
    noise = float(rest.std() / cubes.norm())
    if abs(bend) > 12 * noise and abs(bend) > 2e-3 * float(size):
        raise CommandError(
            "MODEL: its logits bend away from scale * (x @ weight.T) + bias of its output embedding, by "
            f"{abs(bend) / float(size):.1%} where they are largest, as under a soft cap that its configuration does "
            "not name: NLL, entropy and margins would be wrong"
        )
    return scale


def _prove_causal(model: nn.Module, head: Head, ids: Tensor) -> None:
    """Raises CommandError where features move when tokens after them are exchanged."""
    mask = torch.ones_like(ids)
    moved = moved_by_later_tokens(lambda tokens: body(model, head, tokens, mask)[0], ids, head.weight.shape[0])
    if not moved <= causal_tolerance(head.weight.dtype):
        raise CommandError(
            f"MODEL: {type(model).__name__} is not causal: its features move by {moved:.1%} when later tokens change, "
            "so it sees the token that it would be measured at predicting (for a BERT-like model, is_decoder is false)"
        )


def _route(model: nn.Module, x: Tensor, options: dict[str, Any]) -> str:
    base = model.base_model
    if base is model:
        return "interrupted"
    hidden = getattr(base(**options), "last_hidden_state", None)
    same = (
        hidden is not None
        and hidden.shape == x.shape
        and torch.allclose(hidden.float(), x.float(), rtol=1e-3, atol=1e-4)
    )
    return "base" if same else "interrupted"


def body(
    model: nn.Module, head: Head, input_ids: Tensor, attention_mask: Tensor, hidden: bool = False
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The features (B, T, D) that enter the head and, if asked for, all hidden states."""
    options = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if head.features == "base":
        out = model.base_model(**options, output_hidden_states=hidden)
        return out.last_hidden_state, out.hidden_states if hidden else None
    features = interrupted_features(model, **options)
    return features, model.base_model(**options, output_hidden_states=True).hidden_states if hidden else None
