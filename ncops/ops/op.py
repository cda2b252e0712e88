"""The one place where ops enter ``torch.ops.ncops``: schema, fake kernel, gradient and the choice of a backend."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch

from .. import backends
from ..backends import native
from ..backends.dtypes import autocast_dtype, outside_autocast

try:
    _LIBRARY = torch.library.Library("ncops", "DEF")
except RuntimeError:
    raise ImportError(
        "ncops: expected one import in a process, got another: torch takes the definition of an op once; restart Python"
    ) from None
_NATIVE = torch.library.Library(native.NAMESPACE, "FRAGMENT")
DEFINED: list[str] = []  # names, in the order of their definition


def define(
    schema: str, fake: Callable | None = None, *, kernel_returns: str | None = None, check: Callable | None = None,
    after: Callable | None = None, setup: Callable | None = None, backward: Callable | None = None,
) -> None:  # fmt: skip
    """Defines ``ncops::<schema>``, whose kernel is that of the backend for its first argument, a tensor.

    The same schema is that of the compiled kernel, which csrc/<op>.cpp registers.

    Args:
        kernel_returns: what kernels return, where that is not what the op does.
        fake: runs under tracing. It, ``check`` and ``setup`` take the arguments of the schema. None in a
            ``<name>_backward`` makes gradients like the arguments, of size 0 for those that are absent or not needed.
        check: what has to be looked at before the kernel runs, such as the values of labels.
        after: makes the results from the kernel's and the arguments; default: as they are.
        setup, backward: those of :func:`torch.library.register_autograd`, for an op whose gradient is not that of
            :func:`differentiable`. An op ``<name>_backward`` has none: a second derivative is a clear error instead of
            a silent zero.
    """
    name = schema.split("(", 1)[0]
    DEFINED.append(name)

    def run(like, *others):
        if autocast_dtype(like.device) is not None:  # which would make bfloat16 products of the float32 ones inside
            with outside_autocast(like.device):
                return run(like, *others)
        if check is not None:
            check(like, *others)
        results = backends.kernel(name, like)(like, *others)
        return results if after is None else after(results, like, *others)

    def refuse(ctx, *grads):
        raise NotImplementedError(f"{name.removesuffix('_backward')}: second derivatives are not supported")

    kernel_schema = schema if kernel_returns is None else f"{schema.split(' -> ')[0]} -> {kernel_returns}"
    _NATIVE.define(kernel_schema.replace("SymInt", "int"))
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ncops::{name}", fake or functools.partial(_fake_gradients, name), lib=_LIBRARY)
    if name.endswith("_backward"):
        setup, backward = (lambda ctx, inputs, output: None), refuse
    if backward is not None:
        _register_gradient(name, setup, backward)


def _register_gradient(name: str, setup: Callable, backward: Callable) -> None:
    """A gradient runs on the backend that was forced for its op, whatever thread autograd takes, and whenever."""

    def remember(ctx, inputs, output):
        ctx.forced = backends.forced()
        setup(ctx, inputs, output)

    def run(ctx, *gradients):
        with contextlib.nullcontext() if ctx.forced is None else backends.use_backend(ctx.forced):
            return backward(ctx, *gradients)

    torch.library.register_autograd(f"ncops::{name}", run, setup_context=remember, lib=_LIBRARY)


def _fake_gradients(name: str, like: torch.Tensor, *others) -> torch.Tensor | tuple[torch.Tensor, ...]:
    schema = getattr(torch.ops.ncops, name).default._schema
    known = dict(zip((a.name for a in schema.arguments), (like, *others), strict=True))
    gradients = []
    for source in (result.name.removeprefix("g_") for result in schema.returns):
        t = known[source]
        size = t.shape if t is not None and known.get(f"need_{source}", True) else 0
        gradients.append((like if t is None else t).new_empty(size))
    return tuple(gradients) if len(gradients) > 1 else gradients[0]


def differentiable(name: str) -> None:
    """Makes ``<name>_backward`` the gradient of the op ``name``, as the names in the schemas of the two say.

    The backward takes ``g_<result>`` for each result that has a gradient, then results and arguments of the op, and
    ``need_<argument>`` where it can leave a gradient out; defaults of others stay. It returns ``g_<argument>``.
    """
    op, op_backward = (getattr(torch.ops.ncops, n).default for n in (name, f"{name}_backward"))
    arguments, results = ([a.name for a in part] for part in (op._schema.arguments, op._schema.returns))
    takes = [a.name for a in op_backward._schema.arguments if not a.has_default_value()]
    gives = [a.name for a in op_backward._schema.returns]

    def setup(ctx, inputs, output):
        output = output if isinstance(output, tuple) else (output,)
        known = dict(zip((*arguments, *results), (*inputs, *output), strict=True))
        kept = {n: known[n] for n in takes if n in known}
        ctx.tensors = [n for n, value in kept.items() if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*(kept.pop(n) for n in ctx.tensors))
        ctx.others = kept
        ctx.mark_non_differentiable(*(known[n] for n in results if f"g_{n}" not in takes))

    def backward(ctx, *gradients):
        known = ctx.others | dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
        known |= {f"g_{n}": gradient for n, gradient in zip(results, gradients, strict=True)}
        needs = {n: bool(need) for n, need in zip(arguments, ctx.needs_input_grad, strict=True)}
        known |= {f"need_{n}": need for n, need in needs.items()}
        found = op_backward(*(known[n] for n in takes))
        found = dict(zip(gives, found if isinstance(found, tuple) else (found,), strict=True))
        return tuple(found[f"g_{n}"] if need else None for n, need in needs.items())

    _register_gradient(name, setup, backward)
