"""For transformers: neural collapse at the end of a Trainer's evaluations, a causal model's loss without logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import Tensor, nn

from ..model import causal_tolerance, moved_by_later_tokens, stated_scales, stated_softcap, text_config
from ..ops.checks import check_number, check_softcap
from ._need import missing
from ._passes import TwoPasses, Unpack, kind, split_labels, unwrapped

try:
    from transformers import Trainer, TrainerCallback
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ModuleNotFoundError:
    raise missing("transformers", "lm") from None

from ._loss_patch import LossPatch, patch

__all__ = ["LossPatch", "NeuralCollapseCallback", "patch"]

LABELS = ("labels", "label")


def unpack(batch: Any) -> tuple[Any, Tensor]:
    """A mapping with ``labels`` (or ``label``): the model gets the rest as keywords."""
    found = split_labels(batch, LABELS)
    if found is None:
        raise ValueError(f"unpack: expected a mapping with labels, got {kind(batch)}; pass unpack= for others")
    return found


def next_token(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Position t of a causal language model decides about token t + 1."""
    return features[:, :-1], labels[:, 1:]


def is_causal(model: nn.Module) -> bool:
    """Whether transformers shifts this model's labels: by its class, or that of the model inside an adapter."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


@dataclass(eq=False, repr=False)
class NeuralCollapseCallback(TwoPasses, TrainerCallback):
    """Measures NC1 to NC4 when an evaluation ends, and logs them as ``nc/nc1_pinv`` and so on.

    ``trainer.add_callback(NeuralCollapseCallback(trainer))``. Class means come from the training data, decisions (NC4,
    accuracy, NLL, calibration) from the evaluation data. Both are passes of their own in evaluation mode, through
    loaders of their own over the same data sets, and stop before the logits: the training run has the same bits with
    and without this callback. The values go through ``trainer.log`` (and ``state.log_history``), and into what
    ``trainer.evaluate`` returns: with ``prefix="eval_nc"``, ``metric_for_best_model`` and early stopping (added after
    this callback) can name them. With several evaluation sets, their name follows the prefix: ``nc/<set>/nc1_pinv``.

    For causal language models a position's class is the next token, as the loss has it, and -100 is ignored.

    Args:
        trainer: whose ``log`` is used, and whose training data where an evaluation runs outside of training.
        classifier: name of the module whose input is measured and whose ``(C, D)`` weight has the classifier's rows;
            None is the output embedding of a language model, else the last ``nn.Linear``.
        train_loader: batches for the class means, instead of the trainer's own training data.
        means_from: ``"train"``, or ``"eval"``: class means of the evaluation data.
        max_batches: batches of training data per rank, drawn once at random from all of it; None takes all.
        min_count: samples that a class needs to be kept; for tokens, 10 is a usual choice.
        scatter: also ``nc1_pinv`` and ``vci``, for ``D * D`` float64.
        metrics: names to log, by default all of :data:`ncops.report.NAMES`.
        prefix: stands before every name, with a slash.
        convention: as in :func:`ncops.collapse`.
        ignore_index: label of rows that count nowhere.
        scale: factor that the model puts on the products of its classifier. softcap: bound of the tanh that it puts on
            its logits. A warning names models that state one, where neither is given.
        unpack: ``batch -> (keywords of the model, labels)``; without it, a mapping with labels.
        align: ``(features, labels) -> (rows, labels)``; None shifts the labels of causal language models.

    Attributes:
        report: the last :class:`ncops.CollapseReport`, None before the first.
    """

    trainer: Trainer
    classifier: str | None = None
    _: KW_ONLY
    scale: float | None = None
    softcap: float | None = None
    unpack: Unpack = unpack

    def __post_init__(self) -> None:
        if not isinstance(self.trainer, Trainer):
            raise TypeError(f"trainer: expected a transformers Trainer, got {type(self.trainer).__name__}")
        if self.scale is not None:
            self.scale = check_number(self.scale, "scale", "nothing is learned here, give float(scale)")
        self.softcap = check_softcap(self.softcap) or None
        super().__post_init__()

    def on_evaluate(self, args, state, control, model=None, train_dataloader=None, eval_dataloader=None, **kwargs):
        train = self.train_loader if self.train_loader is not None else train_dataloader
        if train is None and self.means_from == "train":
            train = self.train_loader = self.trainer.get_train_dataloader()  # an evaluation outside of training
        model = unwrapped(model)
        align = next_token if is_causal(model) else None
        made = {"scale": self._scale(model), "softcap": self.softcap}
        self.report = self.measure(model, train, eval_dataloader, align=align, **made)
        metrics = kwargs.get("metrics") or {}
        values = self.flat(self.report, _set_name(metrics))
        self.trainer.log(dict(values))
        metrics.update(values)

    def prove(self, model: nn.Module, inputs: Any, features: Callable[[Any], Tensor]) -> None:
        """A causal language model must not see the tokens that it is measured at predicting."""
        ids = inputs.get("input_ids") if isinstance(inputs, Mapping) else None
        if self.align is not None or ids is None or not is_causal(model):
            return
        ids = ids[:1, :32]
        moved = moved_by_later_tokens(lambda tokens: features({"input_ids": tokens}), ids, int(ids.max()) + 1)
        if not moved <= causal_tolerance(next(model.parameters()).dtype):
            raise ValueError(
                f"model: {type(model).__name__} is not causal: its features move by {moved:.1%} when later tokens "
                "change (for a BERT-like model, is_decoder is false); align= says which rows and labels belong together"
            )

    def _scale(self, model: nn.Module) -> float:
        if self.scale is None:
            config = text_config(model)
            if self.softcap is None and (len(stated_scales(config)) > 1 or stated_softcap(config)):
                warnings.warn(
                    "scale: this model's configuration changes its logits after the classifier (a factor or a soft "
                    "cap); NLL, calibration and margins are measured without, decisions are the same. scale= sets a "
                    "factor and softcap= a cap, scale=1.0 says that none is wanted",
                    stacklevel=2,
                )
            self.scale = 1.0
        return self.scale


def _set_name(metrics: Mapping[str, Any]) -> str:
    """Which evaluation set: ``a`` where the metrics are called ``eval_a_runtime``, nothing for ``eval_runtime``."""
    prefix = next((name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")), "eval")
    return prefix.removeprefix("eval").removeprefix("_")
