"""Neural collapse at the end of every evaluation of a Lightning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ._need import missing
from ._passes import TwoPasses, Unpack, kind, split_labels

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ModuleNotFoundError:
        raise missing("lightning", "lightning") from None

__all__ = ["NeuralCollapseCallback"]

LABELS = ("labels", "label", "y", "target", "targets")


def unpack(batch: Any) -> tuple[Any, Tensor]:
    """``(x, y)`` calls ``model(x)``; a mapping calls ``model(**the rest)``, its labels under one of ``LABELS``."""
    found = tuple(batch) if isinstance(batch, (tuple, list)) and len(batch) == 2 else split_labels(batch, LABELS)
    if found is None:
        raise ValueError(
            f"unpack: expected a batch (x, y) or a mapping with labels, got {kind(batch)}; pass unpack= for others"
        )
    return found


@dataclass(eq=False, repr=False)
class NeuralCollapseCallback(TwoPasses, Callback):
    """Measures NC1 to NC4 when an evaluation ends, and logs them as ``nc/nc1_pinv`` and so on.

    Class means come from the training data, decisions (NC4, accuracy, NLL, calibration) from the evaluation data, as in
    the papers. Both are passes of their own in evaluation mode, through loaders of their own over the same data sets:
    the training run has the same bits with and without this callback. What augments the training set augments it here
    too; ``train_loader`` can be one that does not. The logged values can be monitored by ``ModelCheckpoint`` and
    ``EarlyStopping``. A validation measures; a test does too, given ``train_loader``.

    Args:
        classifier: name of the module whose input is measured and whose ``(C, D)`` weight has the classifier's rows;
            None is the last ``nn.Linear`` (the output embedding of a language model).
        train_loader: batches for the class means, instead of the trainer's own training data. It is iterated anew in
            every evaluation. Needed for ``trainer.validate`` and ``trainer.test``, which have no training data.
        means_from: ``"train"``, or ``"eval"``: class means of the evaluation data; a quarter of the cost, and another
            quantity (variability of held-out data).
        max_batches: batches of training data per rank, drawn once at random from all of it; None takes all.
        min_count: samples that a class needs to be kept.
        scatter: also ``nc1_pinv`` and ``vci``, for ``D * D`` float64.
        metrics: names to log, by default all of :data:`ncops.report.NAMES`.
        prefix: stands before every name, with a slash.
        convention: as in :func:`ncops.collapse`.
        ignore_index: label of rows that count nowhere.
        unpack: ``batch -> (what the model is called with, labels)``; see :func:`unpack` for what is understood without.
        align: ``(features, labels) -> (rows, labels)``, where the classifier sees other rows than the labels have.

    Attributes:
        report: the last :class:`ncops.CollapseReport`, None before the first.
    """

    classifier: str | None = None
    _: KW_ONLY
    unpack: Unpack = unpack

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module, trainer.val_dataloaders, trainer.num_val_batches)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.train_loader is not None or self.means_from == "eval":
            self._measure(trainer, pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, loaders: Any, limits: Any) -> None:
        train = trainer.train_dataloader if self.train_loader is None else self.train_loader
        if train is None and self.means_from == "train":
            raise ValueError(
                "train_loader: this evaluation is not part of a fit, so the trainer has no training data; "
                "pass train_loader=, or means_from='eval'"
            )
        if self.train_loader is None and isinstance(train, (Mapping, list, tuple)):
            raise ValueError(
                "train_loader: the trainer trains on several loaders; pass the one to take class means from"
            )
        loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        limits = limits if isinstance(limits, (list, tuple)) else [limits]
        for index, (loader, limit) in enumerate(zip(loaders, limits, strict=True)):
            limit = None if limit == float("inf") else int(limit)  # as the trainer has it: the first so many batches
            with torch.inference_mode(False):  # inference tensors could not be undone by the statistics
                self.report = self.measure(
                    pl_module, train, loader, limit, precision=trainer.precision_plugin.val_step_context
                )
            name = str(index) if len(loaders) > 1 else ""
            pl_module.log_dict(self.flat(self.report, name), add_dataloader_idx=False)
