"""The one place where ops enter ``torch.ops.ncops``: schema, fake kernel, gradient and the choice of a backend."""

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


def define(
    schema: str, fake: Callable, *, check: Callable | None = None, after: Callable | None = None,
    setup: Callable | None = None, backward: Callable | None = None,
) -> None:  # fmt: skip
    """Defines ``ncops::<schema>``, whose kernel is that of the backend for its first argument, a tensor.

    Args:
        fake: runs under tracing. It, ``check`` and ``setup`` take the arguments of the schema.
        check: what has to be looked at before the kernel runs, such as the values of labels.
        after: makes the results from the kernel's and the arguments; default: as they are.
        setup, backward: those of :func:`torch.library.register_autograd`. An op ``<name>_backward`` has neither: a
            second derivative is a clear error instead of a silent zero.
    """
    name = schema.split("(", 1)[0]

    def run(like, *others):
        if check is not None:
            check(like, *others)
        results = backends.kernel(name, like)(like, *others)
        return results if after is None else after(results, like, *others)

    def refuse(ctx, *grads):
        raise NotImplementedError(f"{name.removesuffix('_backward')}: second derivatives are not supported")

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, _outside_autocast(run), "CompositeExplicitAutograd")
    torch.library.register_fake(f"ncops::{name}", fake, lib=_LIBRARY)
    if name.endswith("_backward"):
        setup, backward = (lambda ctx, inputs, output: None), refuse
    if backward is not None:
        torch.library.register_autograd(f"ncops::{name}", backward, setup_context=setup, lib=_LIBRARY)
