"""The loss of a transformers causal language model by linear_loss, in place of logits and their cross entropy."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer
from transformers.loss.loss_utils import ForCausalLMLoss

from ..model import (
    evaluating,
    other_parameters,
    output_embedding,
    qualified_name,
    stated_scales,
    stated_softcap,
    text_config,
)
from ..ops import linear_loss
from ..ops.checks import is_dtensor
from ._passes import unwrapped
from .loaders import untouched_randomness


class LossPatch:
    """What :func:`patch` returns: ``undo()`` gives the model its own loss back, as does the end of a ``with`` block.

    Attributes:
        logits: whether calls with labels form the logits too; may be changed at any time.
        scale, softcap: what the model makes of the products of its output embedding, as it was proved.
    """

    def __init__(self, model: PreTrainedModel, logits: bool) -> None:
        head = _checked_head(model)
        self.logits, self.scale, self.softcap = logits, 1.0, None
        self._model, self._head = model, head
        self._active = self._labelled = self._reached = False
        self._features: Tensor | None = None
        self._own_loss = model.loss_function
        self._own_forward, self._own_head = model.forward, head.forward
        self._labels_at = list(inspect.signature(model.forward).parameters).index("labels")
        # Partials of methods, so that a deep copy of the model calls its own parts and not those of this one.
        places = {
            (model, "forward"): functools.update_wrapper(functools.partial(self._model_forward), model.forward),
            (head, "forward"): functools.update_wrapper(functools.partial(self._head_forward), head.forward),
            (model, "_loss_function"): self._loss,
        }
        self._attributes = [(*place, place[0].__dict__.get(place[1]), ours) for place, ours in places.items()]

    def __deepcopy__(self, memo: dict[int, Any]) -> LossPatch:
        """Of a model's copy; or inert, of its head copied alone, as adapters do: this must not copy the model too."""
        made = memo[id(self)] = type(self).__new__(type(self))
        whole = id(self._model) in memo
        kept = vars(self) if whole else {"_active": False, "_labelled": False, "_own_head": self._own_head}
        vars(made).update(copy.deepcopy(kept, memo))
        return made

    def __enter__(self) -> LossPatch:
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo()

    def undo(self) -> None:
        """The model as it was; where another wrapper has been put around ours since, ours does nothing any more."""
        self._active = False
        for module, name, before, ours in self._attributes:
            if module.__dict__.get(name) == ours:
                if before is None:
                    delattr(module, name)
                else:
                    setattr(module, name, before)

    def install(self) -> None:
        for module, name, _, ours in self._attributes:
            setattr(module, name, ours)
        self._active = True

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        labels = args[self._labels_at] if len(args) > self._labels_at else kwargs.get("labels")
        self._labelled = self._active and labels is not None
        try:
            return self._own_forward(*args, **kwargs)
        finally:
            self._labelled, self._features = False, None

    def _head_forward(self, x: Tensor, target: Tensor | None = None, **options: Any) -> Any:
        if target is not None:
            return linear_loss(x, self._head.weight, self._head.bias, target, **options).loss
        if not self._labelled:
            return self._own_head(x)
        if output_embedding(self._model) is not self._head:
            name, around = type(self._model).__name__, qualified_name(output_embedding(self._model))
            raise ValueError(f"model: {around} is around the output embedding of {name} since patch(): undo() it first")
        self._features = x
        return self._own_head(x) if self.logits else x.new_empty(*x.shape[:-1], 0)

    def _loss(
        self, logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100, shift_labels: Tensor | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """The arguments of transformers' own; the head is called again, with targets, so that FSDP has it whole."""
        x = self._features
        if x is None:
            return self._own_loss(
                logits, labels, vocab_size, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index,
                shift_labels=shift_labels, **kwargs,
            )  # fmt: skip
        self._reached = True
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        target = shift_labels.reshape(-1).to(x.device)
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(x.device)
        options = {"scale": self.scale, "softcap": self.softcap, "ignore_index": ignore_index}
        rows = x.reshape(-1, x.shape[-1])
        return self._head(rows, target, num_items=num_items_in_batch, **options)

    def prove(self, model: nn.Module) -> None:
        """Finds scale and softcap, and holds loss and gradient by the head's input against those of ``model``.

        ``model``: ours, or an adapter around it, which may make a loss of its own.
        """
        name, config = type(model).__name__, text_config(self._model)
        ids = (7919 * torch.arange(16, device=self._head.weight.device) % self._head.weight.shape[0]).view(2, 8)
        with untouched_randomness(), evaluating(model):
            spread = float(model(input_ids=ids).logits.double().std(-1).mean())
            stretch = 4 / max(spread, 1e-6)  # small logits know no cap
            own = self._tried(model, ids, stretch)
            self.install()
            softcap = stated_softcap(config)
            errors = []
            for self.scale in dict.fromkeys(stated_scales(config)):
                for self.softcap in dict.fromkeys((softcap, None)):
                    found = self._reaching(name, lambda: self._tried(model, ids, stretch))
                    errors.append(_distance(found, own))
                    if errors[-1] <= _tolerance(self._head.weight.dtype):
                        return
        raise ValueError(
            f"model: loss and gradient of {name} are not those of softcap(scale * (x @ weight.T) + bias) with what its "
            f"configuration states (off by {min(errors):.1e}): an adapter on the head, a step after it or another loss"
        )

    def _reaching(self, name: str, run: Callable[[], Any]) -> Any:
        """What ``run()`` gives; ValueError where the model's loss does not come by here, or wants logits."""
        found = reason = None
        try:
            found = run()
        except Exception as error:
            reason = error
        if not self._reached:
            raise ValueError(f"model: {name} computes its loss by other means than loss_function") from reason
        if reason is not None:
            raise ValueError(f"model: {name} fails without its logits, which logits=True forms: {reason}") from reason
        return found

    def _tried(self, model: nn.Module, ids: Tensor, stretch: float) -> tuple[Tensor, Tensor]:
        """The model's loss on ``ids``, features stretched, and the gradient by these."""
        entered: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not entered:
                entered.append((stretch * args[0].detach()).requires_grad_())
            return (entered[0].view(args[0].shape), *args[1:])

        labels = ids.clone()
        labels[0, 2] = labels[1, -2:] = -100
        handle = self._head.register_forward_pre_hook(enter)
        try:
            with torch.enable_grad():
                loss = model(input_ids=ids, labels=labels).loss
                return loss.detach(), torch.autograd.grad(loss, entered[0])[0]
        finally:
            handle.remove()


def patch(model: nn.Module | Trainer, *, logits: bool = False) -> LossPatch:
    """Has a causal language model compute its loss by :func:`ncops.linear_loss` wherever it is called with labels.

    ``patch(model)``, before it is wrapped or sharded; ``patch(trainer)`` looks at what the Trainer is asked to do, too.
    The model's ``forward`` runs as before, with its labels, ``num_items_in_batch`` and losses of experts; only its
    output embedding and its ``loss_function`` are ours: N x V logits and their gradient are never formed. Calls without
    labels, such as ``generate``, are untouched.

    Proved at once, on 16 tokens in the model's dtype: loss and gradient by the input of the output embedding are the
    model's own, with the logit scale and soft cap that its configuration states.

    Args:
        model: a causal language model of transformers, inside an adapter's or torch's wrapper or not; or a Trainer.
        logits: with labels too, form the logits that the output has, for metrics. By default ``output.logits`` is an
            empty tensor ``(batch, tokens, 0)`` there.

    Returns:
        :class:`LossPatch`: a context manager, and ``undo()``.

    Raises:
        TypeError: no model of transformers. ValueError: what it cannot do: encoder-decoders, other losses, adapters on
            the output embedding, sharded weights, steps after the head that the configuration does not state; of a
            Trainer, label smoothing, losses of its own, metrics without ``logits=True``.
    """
    if isinstance(model, Trainer):
        _check_trainer(model, logits)
        model = model.model
    model = unwrapped(model)
    found = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(found, PreTrainedModel):
        raise TypeError(f"model: expected a model or Trainer of transformers, got {type(found).__name__}")
    made = LossPatch(found, logits)
    try:
        made.prove(model)
    except BaseException:
        made.undo()
        raise
    return made


def _checked_head(model: PreTrainedModel) -> nn.Linear:
    name, head = type(model).__name__, output_embedding(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"model: expected a causal language model, got {name}, an encoder-decoder")
    if isinstance(getattr(model.loss_function, "__self__", None), LossPatch):
        raise ValueError(f"model: {name} is patched already: undo() comes first")
    if model.loss_function is not ForCausalLMLoss or "labels" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"model: expected the loss of causal language models, got another one in {name}")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"model: expected an nn.Linear as output embedding, got {qualified_name(head)} in {name}")
    others = other_parameters(head)
    if others:
        raise ValueError(f"model: expected no adapter on the output embedding of {name}, got {', '.join(others)}")
    if is_dtensor(head.weight) or head.weight.is_meta or head.weight.numel() == 0:
        raise ValueError(f"model: expected the whole output embedding of {name}: patch it loaded, and not yet sharded")
    return head


def _check_trainer(trainer: Trainer, logits: bool) -> None:
    refused = {
        "label smoothing": trainer.label_smoother is not None,
        "compute_loss_func": trainer.compute_loss_func is not None,
        "use_liger_kernel": trainer.args.use_liger_kernel,
        "several GPUs in one process (DataParallel)": trainer.args.n_gpu > 1,
        "compute_loss of its own without logits=True": not logits
        and type(trainer).compute_loss is not Trainer.compute_loss,
        "compute_metrics without logits=True": not logits and trainer.compute_metrics is not None,
    }
    found = [name for name, present in refused.items() if present]
    if found:
        raise ValueError(f"model: expected a Trainer without {' and '.join(found)}: its loss would not be ours")


def _distance(found: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> float:
    (loss, gradient), (own_loss, own_gradient) = ([t.double() for t in pair] for pair in (found, own))
    off = (loss - own_loss).abs() / own_loss.abs().clamp_min(1)
    bent = (gradient - own_gradient).norm() / own_gradient.norm().clamp_min(1e-30)
    return float(torch.stack([off, bent]).max())  # NaN where either is


def _tolerance(dtype: torch.dtype) -> float:
    """Of products that may be tf32; transformers computes its loss in float32, from float64 too."""
    return 2e-3 if dtype in (torch.float32, torch.float64) else 5e-2
