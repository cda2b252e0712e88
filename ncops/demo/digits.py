"""Ten classes, the classic: an MLP on scikit-learn's digits, trained far beyond zero training error."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CommandError
from ..metrics.table import meaning
from ..report.collapse import collapse
from ..report.measured import Measured
from ..report.numbers import format_value
from ..stats.passes import class_pass
from .checkpoints import Watch, schedule

WIDTH, DIM, BATCH, EPOCHS, TRAIN = 256, 64, 64, 200, 1437
# With batch normalisation and a strong weight decay all of NC1 to NC4 collapse within 200 epochs; without them, or with
# features behind a ReLU, accuracy is as high and NC2 moves away from collapse.
WEIGHT_DECAY = 5e-3


def run(*, epochs: int = EPOCHS, seed: int = 0, quiet: bool = False) -> tuple[Measured, str]:
    """Trains on 1,437 digits and measures; 360 are held out.

    Raises:
        CommandError: without scikit-learn.
    """
    started = time.perf_counter()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise CommandError(
            "--model digits: the digits come with the package scikit-learn: pip install scikit-learn"
        ) from None
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(x))
        train, held = order[:TRAIN], order[TRAIN:]
        body = nn.Sequential(
            nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(),
            nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, DIM), nn.BatchNorm1d(DIM),
        )  # fmt: skip
        head = nn.Linear(DIM, 10)

        def part(rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            body.eval()
            with torch.no_grad():
                yield body(x[rows]), y[rows]
            body.train()

        watch = Watch(
            "An MLP on 1,437 digits", "epoch", lambda: part(train), lambda: part(held),
            lambda: (head.weight.detach(), head.bias.detach()), 10, 1, quiet,
        )  # fmt: skip
        parameters = [*body.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=WEIGHT_DECAY)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

        def losses() -> Iterator[torch.Tensor]:
            for rows in train[torch.randperm(TRAIN)].split(BATCH):
                yield F.cross_entropy(head(body(x[rows])), y[rows])

        watch.fit(optimizer, rates, losses, schedule(epochs, first=5))
    facts = {
        "model_name": f"MLP 64-{WIDTH}-{WIDTH}-{DIM}-10 with batch normalisation",
        "data": "digits of scikit-learn",
        "train_samples": TRAIN,
        "held_out_samples": len(held),
        "epochs": epochs,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    measured = watch.measured(lambda c: f"digit {c}", "class", facts)
    measured.details["notes"].append(_baseline(x[train], y[train]))
    return measured, "Neural collapse of ten digits, epoch by epoch"


def _baseline(pixels: torch.Tensor, labels: torch.Tensor) -> str:
    """What the same measure gives for features that nothing has trained."""
    report = collapse(class_pass([(pixels, labels)], 10, pixels.shape[1], scatter=True))
    shown = ("nc1_quotient", "nc1_cdnv", "nc2_norm_cv", "nc2_cos_std", "nc2_etf_error")
    return "Baseline, the pixels as features: " + ", ".join(
        f"{meaning(name).label} {format_value(report[name])}" for name in shown
    ) + "."  # fmt: skip
