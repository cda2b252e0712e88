"""Ten classes, the classic: an MLP on scikit-learn's digits, trained far beyond zero training error."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CommandError
from ..report.measured import Measured
from .checkpoints import Watch, schedule

WIDTH, DIM, BATCH, EPOCHS, TRAIN = 256, 64, 64, 200, 1437


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
        body = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, DIM), nn.ReLU())
        head = nn.Linear(DIM, 10)

        def part(rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            with torch.no_grad():
                yield body(x[rows]), y[rows]

        watch = Watch(
            "An MLP on 1,437 digits", "epoch", lambda: part(train), lambda: part(held),
            lambda: (head.weight.detach(), head.bias.detach()), 10, 1, quiet,
        )  # fmt: skip
        parameters = [*body.parameters(), *head.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

        def losses() -> Iterator[torch.Tensor]:
            for rows in train[torch.randperm(TRAIN)].split(BATCH):
                yield F.cross_entropy(head(body(x[rows])), y[rows])

        watch.fit(optimizer, rates, losses, schedule(epochs, first=5))
    facts = {
        "model_name": f"MLP 64-{WIDTH}-{DIM}-10",
        "data": "digits of scikit-learn",
        "train_samples": TRAIN,
        "held_out_samples": len(held),
        "epochs": epochs,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    return watch.measured(lambda c: f"digit {c}", "class", facts), "Ten digits collapse"
