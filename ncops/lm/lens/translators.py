"""Translators of a tuned lens: an affine map per layer, added to the state before the model's own tail."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import linear

from ...errors import CommandError
from ...stats.arrays import Arrays

Translator = tuple[Tensor, Tensor | None]
"""A (D, D) and b (D) or None: a state h becomes h + A h + b."""

_LAYER = re.compile(r"(?:.*\.)?(\d+)\.(weight|bias)")


def translate(state: Tensor, translator: Translator) -> Tensor:
    weight, bias = translator
    return state + linear(state, weight, bias)


def read_translators(path: str | Path, layers: Sequence[int], last: int, like: Tensor) -> dict[int, Translator]:
    """Layer -> translator for each of ``layers`` but the ``last``, which is the model itself.

    Arrays are called "<layer>.weight" (D, D) and "<layer>.bias" (D), behind any prefix, or are two, "weight"
    (last, D, D) and "bias" (last, D), of layers 0 to last - 1. Biases may be left out.

    Args:
        like: a state (..., D), whose dtype and device the maps get.

    Raises:
        CommandError: a file that is none, other names, shapes or layers.
    """
    try:
        arrays = Arrays(path)
        found = _stacked(arrays, last) if "weight" in arrays.names else _single(arrays, last)
    except CommandError as error:
        raise CommandError(f"--translators: {error}") from None
    wanted = [layer for layer in layers if layer < last]
    if lacking := [layer for layer in wanted if (layer, "weight") not in found]:
        raise CommandError(f"--translators: {path} has no map for layer {lacking[0]} of the layers 0 to {last - 1}")
    dim, made = like.shape[-1], {}
    for layer in wanted:
        weight, bias = found[layer, "weight"], found.get((layer, "bias"))
        for tensor, shape, name in ((weight, (dim, dim), "weight"), (bias, (dim,), "bias")):
            if tensor is not None and tensor.shape != shape:
                raise CommandError(
                    f"--translators: {path}: {name} of layer {layer}: expected {shape}, as the states have {dim} "
                    f"dimensions, got {tuple(tensor.shape)}"
                )
        made[layer] = weight.to(like), None if bias is None else bias.to(like)
    return made


def _stacked(arrays: Arrays, last: int) -> Mapping[tuple[int, str], Tensor]:
    found = {}
    for name, symbols in (("weight", "(layers, D, D)"), ("bias", "(layers, D)")):
        if name in arrays.names:
            tensor = arrays.tensor(name, symbols)
            if len(tensor) != last:
                raise CommandError(f"{arrays.path}: {name}: expected {last} layers, 0 to {last - 1}, got {len(tensor)}")
            found |= {(layer, name): part for layer, part in enumerate(tensor)}
    return found


def _single(arrays: Arrays, last: int) -> Mapping[tuple[int, str], Tensor]:
    found: dict[tuple[int, str], Tensor] = {}
    for name in arrays.names:
        match = _LAYER.fullmatch(name)
        if match is None:
            raise CommandError(
                f'{arrays.path}: expected arrays "<layer>.weight" and "<layer>.bias", or "weight" and "bias" of all '
                f"layers, got {', '.join(arrays.names)}"
            )
        place = int(match[1]), match[2]
        if place in found:
            raise CommandError(f"{arrays.path}: two arrays are the {place[1]} of layer {place[0]}, {name} for one")
        if place[0] >= last:
            raise CommandError(f"{arrays.path}: {name}: expected layers 0 to {last - 1}, as this model has")
        found[place] = arrays.tensor(name, "(D, D)" if place[1] == "weight" else "(D)")
    return found
