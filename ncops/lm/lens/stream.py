"""The residual stream of a model: its blocks, and the way from behind the last of them into the head.

No configuration says where the stream runs, or which norm ends it: both are read off a forward pass on a few tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import CommandError
from ...model import causal_tolerance
from ..head import interrupted_features


class Step(NamedTuple):
    """A module on the way into the head, and the number that the model multiplies its result by."""

    name: str
    module: nn.Module
    factor: float


class Stream(NamedTuple):
    """``blocks`` in the order they run, and the ``tail`` that the state behind the last of them passes.

    ``factor`` is what the state is multiplied by where it enters the tail.
    """

    blocks: tuple[nn.Module, ...]
    tail: tuple[Step, ...]
    factor: float = 1.0

    def decode(self, state: Tensor, like: Tensor) -> Tensor:
        """What would enter the head, on the device and in the dtype of ``like``, were ``state`` the last one."""
        state = _times(state, self.factor)
        for step in self.tail:
            state = _times(step.module(state), step.factor)
        return state.to(like)

    @property
    def words(self) -> str:
        """The tail as a person reads it."""
        named = [(step.name, step.factor) for step in self.tail]
        if self.factor != 1 or not named:
            named = [("the state", self.factor), *named]
        return " -> ".join(name if factor == 1 else f"{name} * {factor:g}" for name, factor in named)


class _Call(NamedTuple):
    """One call of a module: where it began and ended among all beginnings and ends, its input and its output."""

    name: str
    module: nn.Module
    start: int
    end: int
    given: Tensor | None
    made: Tensor | None


def first_tensor(*places: Any) -> Tensor | None:
    """The first floating tensor among arguments or results, a tuple's first ones too."""
    flat = (item for place in places for item in (place if isinstance(place, (tuple, list)) else (place,)))
    return next((item for item in flat if isinstance(item, Tensor) and item.is_floating_point()), None)


@torch.no_grad()
def find_stream(model: nn.Module, ids: Tensor) -> Stream:
    """Finds blocks and tail on ``ids`` (1, T), and proves that the tail makes the head's input of the last state.

    The blocks are the modules of the last ``nn.ModuleList`` that a forward pass runs through from first to last. From
    the head's input the tail is followed back, from module to module, until it is what the last block has made.

    Raises:
        CommandError: no such list; another step in between than modules of one input, and factors; another result.
    """
    calls, x = _recorded(model, ids)
    blocks = _blocks(model, calls)
    last, steps = blocks[-1], []
    behind = [call for call in calls if call.start > last.end]
    wanted, factor = x, _factor(last.made, x, exact=True)
    while factor is None:
        found = next(((c, f) for exact in (True, False) for c in behind if (f := _makes(c, wanted, exact))), None)
        if found is None:
            factor = _factor(last.made, wanted)
            if factor is None:
                raise CommandError(
                    f"MODEL: between the last block of {type(model).__name__} and its output embedding is a step that "
                    "is no module of its own, so no other layer's state can take it"
                )
            break
        call, made = found
        steps.append(Step(call.name, call.module, made))
        wanted, behind = call.given, [c for c in behind if c.end < call.start]
        factor = _factor(last.made, wanted, exact=True)
    stream = Stream(tuple(call.module for call in blocks), tuple(reversed(steps)), factor)
    _prove(stream, last.made, x)
    return stream


def _times(state: Tensor, factor: float) -> Tensor:
    return state if factor == 1 else state * factor


def _recorded(model: nn.Module, ids: Tensor) -> tuple[list[_Call], Tensor]:
    """All calls of modules in the order they began, and the head's input."""
    begun: list[tuple[nn.Module, int, Tensor | None]] = []
    calls: list[_Call] = []

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        begun.append((module, len(begun) + len(calls), first_tensor(*args, *kwargs.values())))

    def end(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            start, given = next((start, given) for other, start, given in reversed(begun) if other is module)
            calls.append(_Call(name, module, start, len(begun) + len(calls), given, first_tensor(output)))

        return hook

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(end(name)).remove)
        x = interrupted_features(model, input_ids=ids, use_cache=False)
    return sorted(calls, key=lambda call: call.start), x


def _blocks(model: nn.Module, calls: Sequence[_Call]) -> list[_Call]:
    """The calls of the last list of modules that runs from first to last, and lies in no other such list."""
    of: dict[nn.Module, list[_Call]] = {}
    for call in calls:
        of.setdefault(call.module, []).append(call)
    stacks: list[list[_Call]] = []
    for module in model.modules():  # an outer list comes before those inside it
        runs = [of.get(block, []) for block in module] if isinstance(module, nn.ModuleList) else []
        if runs and all(len(run) == 1 and run[0].made is not None and run[0].made.ndim == 3 for run in runs):
            stack = [run[0] for run in runs]
            ordered = all(a.end < b.start for a, b in zip(stack[:-1], stack[1:], strict=True))
            inside = any(a.start < stack[0].start < a.end for other in stacks for a in other)
            if ordered and not inside and len({c.made.shape for c in stack}) == 1:
                stacks.append(stack)
    if not stacks:
        raise CommandError(
            f"MODEL: {type(model).__name__} has no list of blocks that a forward pass runs through once, with a state "
            "(batch, tokens, dim) behind each, so it has no layers to look at"
        )
    return max(stacks, key=lambda stack: stack[0].start)


def _makes(call: _Call, wanted: Tensor, exact: bool) -> float | None:
    """The factor by which a call's output is ``wanted``; None where it is not, or where the call changes nothing."""
    if call.given is None or call.made is None or _factor(call.given, call.made, exact=True):
        return None
    return _factor(call.made, wanted, exact)


def _factor(made: Tensor, wanted: Tensor, exact: bool = False) -> float | None:
    """The number that makes ``wanted`` of ``made``, whatever their shapes: 1 if ``exact``. None where none does."""
    if made.numel() != wanted.numel():
        return None
    one, other = made.reshape(-1).to(wanted), wanted.reshape(-1)
    if exact or torch.equal(one, other):
        return 1.0 if torch.equal(one, other) else None
    one, other = one.double(), other.double()
    factor = float((one * other).sum() / (one * one).sum())
    rest = float((other - factor * one).norm() / other.norm().clamp_min(1e-30))
    return factor if rest <= causal_tolerance(wanted.dtype) else None


def _prove(stream: Stream, state: Tensor, x: Tensor) -> None:
    try:
        made = stream.decode(state, x)
    except (TypeError, RuntimeError) as error:
        raise CommandError(
            f"MODEL: {stream.words} does not take a state alone: {str(error).splitlines()[0]}"
        ) from error
    error = float((made - x).double().norm() / x.double().norm().clamp_min(1e-30)) if made.shape == x.shape else 1.0
    if not error <= causal_tolerance(x.dtype):
        raise CommandError(
            f"MODEL: {stream.words} makes another input of its output embedding from the last state than the model "
            f"does, off by {error:.1e}"
        )


class States:
    """Takes the states of ``layers`` out of forward passes: 0 is what enters the first block, i what leaves block i.

    Blocks may go on to write where they have read, so that states are copied.
    """

    def __init__(self, stream: Stream, layers: Sequence[int]) -> None:
        self._stream, self._layers = stream, layers
        self._found: dict[int, Tensor] = {}

    def run(self, model: nn.Module, **inputs: Any) -> tuple[Tensor, dict[int, Tensor]]:
        """The head's input, and layer -> state of one forward pass, which ends before the logits."""
        with contextlib.ExitStack() as hooks:
            for layer in self._layers:
                block = self._stream.blocks[max(layer - 1, 0)]
                if layer == 0:
                    handle = block.register_forward_pre_hook(self._entering, with_kwargs=True)
                else:
                    handle = block.register_forward_hook(self._leaving(layer))
                hooks.callback(handle.remove)
            x = interrupted_features(model, **inputs)
        found, self._found = self._found, {}
        return x, found

    def _entering(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._found[0] = first_tensor(*args, *kwargs.values()).detach().clone()

    def _leaving(self, layer: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self._found[layer] = first_tensor(output).detach().clone()

        return hook
