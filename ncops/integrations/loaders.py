"""Reads the data of somebody else's loader without moving that loader, nor any random number, on."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

SEED = 0


@contextlib.contextmanager
def untouched_randomness() -> Iterator[None]:
    """Puts the states of Python's, NumPy's and torch's generators back: training goes on as if nothing had run."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def same_data(
    loader: Any, max_batches: int | None, rank: int = 0, ranks: int = 1, *, drawn: bool = True
) -> Iterable[Any]:
    """Batches of the data behind ``loader``: all of it, or ``max_batches`` per rank, the same in every call.

    A ``DataLoader`` in use must not be iterated a second time: samplers, workers and accelerate's wrappers keep their
    place in it. So its dataset is read by a loader of our own, with its batch size, ``collate_fn`` and workers; of a
    dataset with a length, each rank takes its share, every row exactly once. A part of it is ``drawn`` at random by a
    fixed seed (data may be sorted by class), or its beginning. Anything else is iterated as it is.
    """
    if not isinstance(loader, DataLoader):
        return itertools.islice(loader, max_batches)
    names = ("collate_fn", "num_workers", "pin_memory", "worker_init_fn", "multiprocessing_context", "prefetch_factor")
    options: dict[str, Any] = {name: getattr(loader, name) for name in names}
    size = options["batch_size"] = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    # A DataLoader draws from torch's global generator unless it has one of its own.
    options["generator"] = torch.Generator().manual_seed(SEED)
    if isinstance(loader.dataset, IterableDataset):
        return itertools.islice(DataLoader(loader.dataset, **options), max_batches)
    count = len(loader.dataset)
    chosen: Any = range(count)
    if max_batches is not None:
        if drawn:
            chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist()
        chosen = chosen[: max_batches * (size or 1) * ranks]
    return DataLoader(loader.dataset, sampler=chosen[rank::ranks], **options)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch of nested mappings and sequences with its tensors on ``device``."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
