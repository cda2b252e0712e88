"""The one place where ops enter ``torch.ops.ncops``: schema, run-time implementation and fake kernel together."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import backends
from ..backends.dtypes import autocast_dtype, outside_autocast

_LIBRARY = torch.library.Library("ncops", "DEF")


def _outside_autocast(implementation: Callable) -> Callable:
    """Autocast would turn the float32 products inside an implementation into bfloat16 ones."""

    def run(*args):
        device = next(a.device for a in args if isinstance(a, torch.Tensor))
        if autocast_dtype(device) is None:
            return implementation(*args)
        with outside_autocast(device):
            return implementation(*args)

    return run


def dispatched(name: str) -> Callable:
    """The implementation of an op that only runs its kernel for the device and dtype of the first argument."""
    return lambda *args: backends.kernel(name, args[0])(*args)


def define(schema: str, implementation: Callable, fake: Callable) -> None:
    """Defines ``ncops::<schema>``, runs ``implementation`` on every device and ``fake`` under tracing."""
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, _outside_autocast(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ncops::{name}", fake, lib=_LIBRARY)


def differentiate(name: str, backward: Callable, setup_context: Callable) -> None:
    """Attaches the gradient of ``ncops::<name>``."""
    torch.library.register_autograd(f"ncops::{name}", backward, setup_context=setup_context, lib=_LIBRARY)


def differentiate_once(name: str) -> None:
    """Makes the second derivative of ``ncops::<name>_backward`` a clear error instead of a silent zero."""

    def refuse(ctx, *grads):
        raise NotImplementedError(f"{name}: second derivatives are not supported")

    differentiate(f"{name}_backward", refuse, lambda ctx, inputs, output: None)
