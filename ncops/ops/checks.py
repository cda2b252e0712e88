"""Argument checks shared by the ops. Errors name the argument, what came and what was expected."""

from __future__ import annotations

import math
import operator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def shape(t: Tensor) -> str:
    return str(tuple(int(n) for n in t.shape))


def is_dtensor(t: Any) -> bool:
    return hasattr(t, "placements") and hasattr(t, "device_mesh")


def check_tensor(t: Any, name: str) -> None:
    """Raises TypeError for what is no tensor and ValueError for a DTensor, each with what to do about it."""
    if not isinstance(t, Tensor):
        hint = f": torch.as_tensor({name}) is one" if hasattr(t, "__array__") or isinstance(t, (list, tuple)) else ""
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}{hint}")
    if is_dtensor(t):
        whole = all(place.is_replicate() for place in t.placements)
        remedy = f"{name}.to_local() is the whole one" if whole else f"{name}.full_tensor() gathers it"
        raise ValueError(f"{name}: expected a plain tensor, got a DTensor placed {tuple(t.placements)}: {remedy}")
    if _is_freed(t):
        raise RuntimeError(f"{name}: its storage has 0 bytes, fewer than its shape needs: it was freed or resized")


def _is_freed(t: Tensor) -> bool:
    """Sharding frameworks free a tensor's memory and leave its shape: torch's own ops then read at address 0."""
    if torch.compiler.is_compiling():
        return False
    try:
        return t.untyped_storage().nbytes() == 0 and t.numel() > 0
    except (NotImplementedError, RuntimeError):  # sparse tensors and what torch.func wraps have none
        return False


def check_floating(t: Tensor, name: str, ndim: int | None = None) -> None:
    check_tensor(t, name)
    if t.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {t.layout}")
    if t.dtype not in FLOATING:
        raise ValueError(f"{name}: expected float32, float64, bfloat16 or float16, got {t.dtype}")
    if ndim is not None and t.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {shape(t)}")


def flatten_rows(x: Tensor) -> Tensor:
    """Features ``(..., D)`` in a dtype of the ops as ``(N, D)``."""
    check_floating(x, "x")
    if x.ndim < 1:
        raise ValueError("x: expected shape (..., D), got a scalar")
    return rows_of(x)


def rows_of(x: Tensor) -> Tensor:
    """``(..., D)`` as ``(N, D)``, where D may be 0 too, of which torch cannot tell N."""
    if x.ndim == 2:
        return x
    return x.reshape(-1 if x.shape[-1] else x.shape[:-1].numel(), x.shape[-1])


def check_integer(value: Any, name: str, minimum: int | None = None) -> int:
    """``value`` as a Python integer of 64 bits, from NumPy's integers and 0-dim tensors too."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        found = value  # as it is: operator.index would fix a symbolic size, and make a new graph for every value
    else:
        try:
            found = None if isinstance(value, bool) else operator.index(value)
        except (TypeError, RuntimeError):  # RuntimeError: a tensor of several elements
            found = None
    if found is None:
        kind = TypeError if value is None or isinstance(value, str) else ValueError
        raise kind(f"{name}: expected an integer, got {value!r}")
    if minimum is not None and found < minimum:
        raise ValueError(f"{name}: expected an integer of {minimum} or more, got {found}")
    if not torch.compiler.is_compiling() and not -(2**63) <= found < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {found}")
    return found


def check_number(value: Any, name: str, instead: str) -> float:
    """``value`` as a finite Python number; ``instead`` says what to do with one that requires a gradient."""
    if not isinstance(value, (int, float)):
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name}: expected a number, got a tensor that requires a gradient: {instead}")
        if value is None or isinstance(value, str):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        if getattr(value, "ndim", 0) != 0:
            raise ValueError(f"{name}: expected a number, got shape {tuple(value.shape)}")
        if isinstance(value, Tensor) and torch.compiler.is_compiling():
            raise ValueError(f"{name}: expected a Python number under torch.compile, got a tensor: {instead}")
    found = float(value)
    if not torch.compiler.is_compiling() and not math.isfinite(found):
        raise ValueError(f"{name}: expected a finite number, got {found}")
    return found


def check_softcap(value: Any) -> float:
    """The cap on the size of logits as the ops take it, 0 for None; float32 has to hold it and its inverse."""
    if value is None:
        return 0.0
    found = check_number(value, "softcap", "it has no gradient, give float(softcap)")
    if not 1e-30 <= found <= 1e30:
        raise ValueError(f"softcap: expected None or a positive number (1e-30 to 1e30), got {found}")
    return found


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Ops have reverse-mode gradients only; torch would take a missing forward-mode rule for a derivative of zero."""
    if torch.compiler.is_compiling():
        return
    for t in tensors:
        if t is not None and forward_ad.unpack_dual(t).tangent is not None:
            raise NotImplementedError(f"{op}: forward-mode derivatives are not supported, reverse-mode ones are")


def check_shape(t: Tensor, name: str, expected: tuple[int, ...], meaning: str) -> None:
    """``meaning`` spells the expected shape in symbols, for instance ``"(num_classes, D)"``."""
    if tuple(t.shape) != tuple(expected):
        numbers = tuple(int(n) for n in expected)
        raise ValueError(f"{name}: expected shape {meaning} = {numbers}, got {shape(t)}")


def check_device(t: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if t.device != like.device:
        raise ValueError(f"{name}: expected the device of {like_name}, {like.device}, got {t.device}")


def check_beside(
    t: Tensor, name: str, expected: tuple[int | None, ...], meaning: str, like: Tensor, like_name: str
) -> None:
    """A floating tensor of the expected shape (None: of any size there) on the device of ``like``."""
    check_floating(t, name, len(expected) if None in expected else None)
    check_shape(t, name, tuple(t.shape[i] if n is None else n for i, n in enumerate(expected)), meaning)
    check_device(t, name, like, like_name)


def check_dtype(t: Tensor, name: str, dtype: torch.dtype, why: str) -> None:
    if t.dtype != dtype:
        raise ValueError(f"{name}: expected {dtype} ({why}), got {t.dtype}")


def flatten_labels(labels: Tensor, name: str, x: Tensor, x_name: str) -> Tensor:
    """Integer labels of shape ``x.shape[:-1]`` as a flat int64 tensor."""
    check_tensor(labels, name)
    rows = tuple(x.shape[:-1])
    one_hot = labels.ndim == len(rows) + 1 and tuple(labels.shape[:-1]) == rows and labels.shape[-1] != 1
    if labels.dtype not in INTEGER:
        hint = f": one class per row, not one-hot or probabilities; {name}.argmax(-1) has it" if one_hot else ""
        raise ValueError(f"{name}: expected an integer dtype, got {labels.dtype}{hint}")
    if tuple(labels.shape) != rows:
        hint = ""
        if one_hot:
            hint = f": one class per row, not one-hot; {name}.argmax(-1) has it"
        elif tuple(labels.shape) == (*rows, 1):
            hint = f": {name}.squeeze(-1) has it"
        raise ValueError(
            f"{name}: expected shape {x_name}.shape[:-1] = {tuple(int(n) for n in rows)}, got {shape(labels)}{hint}"
        )
    check_device(labels, name, x, x_name)
    return labels.reshape(-1).to(torch.int64)


def raise_bad_label(labels: Tensor, num_classes: int, ignore_index: int, name: str) -> NoReturn:
    """Raises for the first flat label that is neither ``ignore_index`` nor in ``[0, num_classes)``; one must exist."""
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    row = int(bad.nonzero()[0])
    raise ValueError(
        f"{name}: expected values in [0, {num_classes}) or ignore_index={ignore_index}, "
        f"got {int(labels[row])} at row {row} of {labels.shape[0]}"
    )


def check_class_labels(labels: Tensor, ignore_index: int, name: str) -> None:
    """Raises ValueError on the CPU for a label below 0 that is not ``ignore_index``, where classes have no number."""
    if labels.device.type != "cpu" or labels.numel() == 0 or labels.min() >= 0:
        return
    bad = (labels < 0) & (labels != ignore_index)
    if bad.any():
        row = int(bad.int().argmax())
        raise ValueError(
            f"{name}: expected values of 0 or more or ignore_index={ignore_index}, "
            f"got {int(labels[row])} at row {row} of {labels.shape[0]}"
        )


def check_label_values(labels: Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Raises ValueError for a bad label on the CPU; other devices would have to synchronise, so they count instead."""
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    low, high = labels.aminmax()
    if low >= 0 and high < num_classes:
        return
    if (((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)).any():
        raise_bad_label(labels, num_classes, ignore_index, name)
