"""What streaming states share: a dictionary of tensors, a file, a device."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import check_alike
from .files import save_state

P = ParamSpec("P")
R = TypeVar("R")


def stateful(method: Callable[P, R]) -> Callable[P, R]:
    """Makes a method that allocates or writes state keep no graph and make ordinary tensors.

    What is allocated inside ``torch.inference_mode`` could never be updated or merged outside of it.
    """

    @functools.wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return run


class StreamingState:
    """Subclasses name their tensors in ``_TENSORS`` (one may be None).

    A state is its :meth:`config` and its :meth:`tensors`: what stores one writes both, and ``from_state(config,
    tensors)`` of its class makes it again, or raises ValueError; whoever has them from outside this process then calls
    :meth:`check_values`. To sum over ranks, a subclass says in :meth:`_alike` what must agree, and
    adds up in :meth:`_reduce`.
    """

    _TENSORS: tuple[str, ...] = ()
    _reduced = False  # holds the sum over ranks: what is added now would be added again by the next reduction

    def config(self) -> dict[str, Any]:
        """What ``from_state`` needs beside the tensors, as plain values."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The state's tensors by name, not copied; without those that it does not keep."""
        return {name: getattr(self, name) for name in self._TENSORS if getattr(self, name) is not None}

    def state_dict(self) -> dict[str, Any]:
        """The state's tensors by name and, under ``"config"``, plain values. The tensors are not copied."""
        return {**self.tensors(), "config": self.config()}

    @stateful
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over, as copies on this device, the content of a :meth:`state_dict` of statistics like these.

        Means and classifier of :class:`ncops.DecisionStatistics` stay.

        Raises:
            ValueError: no dictionary with a config; missing, foreign or impossible values; other sizes, another
                convention or another set of kept classes. Nothing has changed then.
        """
        if not isinstance(state, Mapping) or "config" not in state:
            got = f"the names {', '.join(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: expected a dictionary of tensors and 'config', got {got}")
        loaded = type(self).from_state(state["config"], {n: value for n, value in state.items() if n != "config"})
        loaded.check_values()
        self._check_fits(loaded)
        copied = {name: tensor.to(self.device, copy=True) for name, tensor in loaded.tensors().items()}
        vars(self).update({**vars(loaded), **copied})

    def check_values(self) -> None:
        """Raises ValueError for numbers that no rows have, such as negative counts; it looks at all of them."""
        raise NotImplementedError

    def _check_fits(self, loaded: Any) -> None:
        """Raises ValueError unless the content of ``loaded`` may replace that of self."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike) -> None:
        """Writes the state to a safetensors file, whole or not at all; :func:`ncops.load` reads it."""
        save_state(path, type(self).__name__, self.config(), self.tensors())

    def _check_not_reduced(self, what: str) -> None:
        if self._reduced:
            raise RuntimeError(
                f"{what}: these statistics hold the sum over all ranks (all_reduce, inplace=True); reset() them first"
            )

    @stateful
    def all_reduce(self, group=None, *, inplace: bool = False):
        """The statistics of all ranks of ``torch.distributed`` together, on every rank; every rank must call it.

        ``total = stats.all_reduce()``, or ``stats.all_reduce(inplace=True)``: a result that nobody takes leaves
        ``stats`` with the rows of its own rank, and nothing can tell that from a use of them that is meant.

        Args:
            group: the process group; None is the default one. gloo needs the state on a CPU, nccl on a GPU.
            inplace: put the result into self and return self. Updates then raise until :meth:`reset`, so that nothing
                is counted twice. By default self is left alone.

        Raises:
            RuntimeError: torch.distributed is not initialised, or the state has been reduced in place before; or
                another rank has raised, died or not answered within the group's timeout. Nothing has changed then.
            ValueError: the ranks' statistics differ in what must be the same (sizes, dtype, convention); on every rank
                alike, and nothing has changed.

        Memory: the state once more, until every rank has its sum.
        """
        self._check_not_reduced("all_reduce")
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("all_reduce: torch.distributed is not initialised: call init_process_group first")
        agreed = check_alike(self._alike(), group)
        total = copy.copy(self)
        vars(total).update({name: tensor.clone() for name, tensor in self.tensors().items()})
        total._reduce(group, agreed)
        if not inplace:
            return total
        check_alike({}, group)  # every rank has come this far
        vars(self).update({**vars(total), "_reduced": True})
        return self

    def _alike(self) -> dict[str, Any]:
        """What must agree between ranks that are added up; None fits everything."""
        raise NotImplementedError

    def _reduce(self, group, agreed: dict[str, Any]) -> None:
        """Replaces the state by the sum over the ranks, which have ``agreed`` on what :meth:`_alike` names."""
        raise NotImplementedError

    @stateful
    def to(self, device: torch.device | str):
        """Moves the state's tensors to ``device``; returns self."""
        for name, tensor in self.tensors().items():
            setattr(self, name, tensor.to(device))
        return self
