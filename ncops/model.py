"""The classifier of a model: which module it is, its rows, the features that enter it, and factors on its logits."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Classifier = nn.Module | tuple[Tensor, Tensor | None] | Tensor | None


def find_classifier(model: nn.Module, name: str | None = None) -> nn.Module:
    """The submodule called ``name``; None takes the output embedding of a language model, else the last ``nn.Linear``.

    "Last" is the order in which modules were registered, which need not be the order in which they run.

    Raises:
        ValueError: no such module, none found, or one without a ``(C, D)`` weight.
    """
    modules = dict(model.named_modules())
    if name is not None:
        if name not in modules:
            linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
            raise ValueError(f"classifier: the model has no module {name!r}; its linear ones: {', '.join(linear)}")
        found = modules[name]
    else:
        embedding = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        linear = [m for m in modules.values() if isinstance(m, nn.Linear)]
        found = embedding if embedding is not None else linear[-1] if linear else None
        if found is None:
            raise ValueError("classifier: the model has no nn.Linear; name the module that makes the logits")
    rows(found)
    return found


def output_embedding(model: Any) -> nn.Module | None:
    """The output embedding of a transformers model as it runs now: where PEFT trains copies of it, the active one."""
    head = model.get_output_embeddings()
    copies = getattr(head, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return head
    active = [] if head.disable_adapters else head.active_adapters
    return copies[active[0]] if active and all(name in copies for name in active) else head.original_module


def qualified_name(module: Any) -> str:
    """Of a module's class: an adapter's may be called Linear too."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def rows(classifier: Classifier) -> tuple[Tensor, Tensor | None]:
    """Weight ``(C, D)`` and bias ``(C,)`` or None, detached, as they are now.

    Raises:
        ValueError: without such a weight. TypeError: neither a module nor tensors.
    """
    if isinstance(classifier, nn.Module):
        weight, bias = getattr(classifier, "weight", None), getattr(classifier, "bias", None)
    elif isinstance(classifier, tuple) and len(classifier) == 2:
        weight, bias = classifier
    else:
        weight, bias = classifier, None
        if not isinstance(weight, Tensor):
            raise TypeError(
                f"classifier: expected a module, a weight or (weight, bias), got {type(classifier).__name__}"
            )
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        got = "none" if not isinstance(weight, Tensor) else f"shape {tuple(weight.shape)}"
        raise ValueError(f"classifier: expected a weight of shape (C, D), got {got}")
    return weight.detach(), None if bias is None else bias.detach()


def text_config(model: nn.Module) -> Any:
    """The configuration of a model's language part, where its configuration has parts; None without any."""
    config = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


@torch.no_grad()
def identity(model: nn.Module) -> str:
    """A hash of all parameters and of what the configuration says of the logits: models of one identity are one model.

    Every word counts in a sum, the ends of each tensor in their places: the speed is that of memory.
    """
    config = text_config(model)
    digest = hashlib.sha256(repr((stated_scales(config), stated_softcap(config))).encode())
    for name, tensor in sorted(model.state_dict().items()):
        words = tensor.detach().reshape(-1).contiguous().view(torch.uint8)
        if words.numel() and (words.numel() | words.storage_offset()) % 8 == 0:
            words = words.view(torch.int64)
        ends = torch.cat([words[:512], words[-512:]]).cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {int(words.sum(dtype=torch.int64))}".encode())
        digest.update(ends.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def stated_scales(config: Any) -> list[float]:
    """Factors on the logits that model configurations state, under the names in use, and their inverses."""
    found = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier_scale"):
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and value > 0:
            found += [float(value), 1.0 / float(value)]
    return found


def stated_softcap(config: Any) -> float | None:
    """The bound of a tanh that a model's configuration states for its logits, whatever it calls it.

    ``final_logit_softcapping``, ``output_logit_soft_cap``, ``logits_soft_cap``, ...; caps of attention are others.
    """
    settings = config.to_dict() if hasattr(config, "to_dict") else vars(config or object)
    for name, value in settings.items():
        capped = "logit" in name and "cap" in name and not any(part in name for part in ("attn", "attention", "router"))
        if capped and isinstance(value, (int, float)) and value > 0:
            return float(value)
    return None


class NeverReached(RuntimeError):
    """A forward pass came to an end without calling the classifier."""


class _Reached(Exception):
    """The features are there: the logits need not be computed."""


@contextlib.contextmanager
def features_into(classifier: nn.Module) -> Iterator[FeatureTrap]:
    """While open, a forward pass of the model stops at ``classifier`` and leaves its input in the trap.

    The hook is gone when the block is left, by an error too.
    """
    trap = FeatureTrap()
    handle = classifier.register_forward_pre_hook(trap.stop, with_kwargs=True)
    try:
        yield trap
    finally:
        handle.remove()


class FeatureTrap:
    """Runs forward passes for what enters the classifier; holds one batch at most."""

    def __init__(self) -> None:
        self._features: Tensor | None = None
        self._armed = True

    def stop(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._armed:
            self._features = args[0] if args else next(iter(kwargs.values()))
            raise _Reached

    def run(self, forward: Callable[[], Any]) -> Tensor:
        """The classifier's input in ``forward()``, detached.

        Raises:
            NeverReached: ``forward()`` came to an end without calling the classifier.
        """
        self._features = None
        with contextlib.suppress(_Reached):
            forward()
        if self._features is None:
            raise NeverReached("classifier: the forward pass never calls it, so there are no features to measure")
        features, self._features = self._features, None
        return features.detach()

    @contextlib.contextmanager
    def disarmed(self) -> Iterator[None]:
        """Lets calls of the classifier through."""
        self._armed = False
        try:
            yield
        finally:
            self._armed = True


def other_parameters(classifier: nn.Module) -> list[str]:
    """Names of the parameters beside ``weight`` and ``bias``, such as those of an adapter, which may not show yet."""
    return [name for name, _ in classifier.named_parameters() if name not in ("weight", "bias")]


@torch.no_grad()
def prove_product(
    classifier: nn.Module, x: Tensor, name: str = "classifier", otherwise: str = "would not be measured"
) -> None:
    """Raises ValueError where a classifier makes of rows of ``x`` anything else than x @ weight.T + bias."""
    weight, bias = rows(classifier)
    some = x.detach().reshape(-1, x.shape[-1])[:8].to(weight.dtype)  # autocast may have made them coarser
    if not len(some):
        return
    made = classifier(some)
    wanted = nn.functional.linear(some, weight, bias)  # in their own dtype: a head in float64 would be gigabytes
    same = isinstance(made, Tensor) and made.shape == wanted.shape
    error, allowed = math.inf, 0.0
    if same:
        error = float((made.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        coarsest = max((t.dtype for t in (some, weight, made)), key=lambda dtype: torch.finfo(dtype).eps)
        allowed = {torch.float64: 1e-9, torch.float32: 2e-3}.get(coarsest, 5e-2)  # 2e-3: tf32
    if error > allowed:  # rows with a NaN tell nothing
        raise ValueError(
            f"{name}: {type(classifier).__name__} gives something else than x @ weight.T + bias"
            + (f" (off by {error:.1e})" if same else "")
            + f": an adapter on it, or another step inside it, {otherwise}"
        )


@torch.no_grad()
def moved_by_later_tokens(features: Callable[[Tensor], Tensor], ids: Tensor, vocabulary: int) -> float:
    """How far features ``(1, T, D)`` of token ids ``(1, T)`` move, relatively, when the later half of them changes.

    A causal model gives 0, except where its products change their order (experts): :func:`causal_tolerance`.
    """
    half = ids.shape[1] // 2
    if half == 0:
        return 0.0
    exchanged = ids.clone()
    exchanged[:, half:] = (ids[:, half:] + 1) % vocabulary
    before, after = (features(tokens)[:, :half].double() for tokens in (ids, exchanged))
    return float(((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-30)).max())


def causal_tolerance(dtype: torch.dtype) -> float:
    """What roundings alone may move features by."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 3e-2)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, nothing compiled; every submodule gets its own mode back.

    Compiled graphs do not see hooks, hence the model runs eagerly.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
