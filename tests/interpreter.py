"""Triton's interpreter with the numbers of compiled kernels, in less than half of its time.

Nearly all of it goes into types: each operation on a block makes some, checks their shapes and writes their names.
"""

from __future__ import annotations

import functools

import numpy as np


def prepare() -> None:
    """Call before a kernel runs."""
    from triton.runtime import interpreter

    # Before Triton 3.8 the interpreter's maximum of a number and NaN is NaN; compiled kernels give the number.
    interpreter.InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    _patch_once(interpreter)
    _remember_types(interpreter)


def _patch_once(interpreter) -> None:
    """It patches triton.language for a launch, and again for every call of a device function. Once a launch is enough
    for functions that see the same of it: tl, or tl.core within it."""
    import triton.language as tl

    patch, restore, patched = interpreter._patch_lang, interpreter._LangPatchScope.restore, set()

    def patch_once(function):
        seen = frozenset(id(value) for value in function.__globals__.values() if value is tl or value is tl.core)
        if seen not in patched:
            patched.add(seen)
            return patch(function)

    def restore_and_forget(scope):
        patched.clear()
        restore(scope)

    interpreter._patch_lang, interpreter._LangPatchScope.restore = patch_once, restore_and_forget


def _remember_types(interpreter) -> None:
    """What depends on an element's type and a shape alone is made once."""
    from triton.language import core, semantic

    computed = semantic.TritonSemantic.computation_type_impl
    semantic.TritonSemantic.computation_type_impl = functools.cache(computed)
    make_block, make_tensor, equal = core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__
    unwrap, numpy_type = core._unwrap_if_constexpr, interpreter._get_np_dtype
    blocks, shapes, numpy_types = {}, {}, {}
    as_they_are = {int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type}

    def block_type(self, element_ty, shape):
        sizes = shape.values if type(shape) is core.tuple else shape
        if type(element_ty) is core.dtype and all(type(size) is int for size in sizes):
            key = element_ty, *sizes
            if key not in blocks:
                make_block(self, element_ty, shape)
                blocks[key] = dict(self.__dict__)
            self.__dict__.update(blocks[key])
        else:  # of pointers, or of sizes that are not numbers yet
            make_block(self, element_ty, shape)

    def tensor(self, handle, type):
        key = tuple(type.shape.values) if type.is_block() else ()
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[key]

    def same_tuple(self, other):
        if type(other) is core.tuple:
            return self.values == other.values
        return equal(self, other)

    def unwrap_if_constexpr(o):
        if type(o) in as_they_are:
            return o
        return o.value if type(o) is core.constexpr else unwrap(o)

    def get_np_dtype(type):
        scalar = type.scalar
        if not isinstance(scalar, core.dtype) or scalar.is_ptr():
            return numpy_type(type)
        if scalar not in numpy_types:
            numpy_types[scalar] = numpy_type(type)
        return numpy_types[scalar]

    core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__ = block_type, tensor, same_tuple
    core._unwrap_if_constexpr, interpreter._get_np_dtype = unwrap_if_constexpr, get_np_dtype
