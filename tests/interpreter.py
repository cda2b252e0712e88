"""Triton's interpreter with the numbers of compiled kernels, in less than a third of its time.

Nearly all of it goes into types: each operation on a block makes some, checks their shapes and writes their names.
"""

from __future__ import annotations

import functools
import math

import numpy as np


def prepare() -> None:
    """Call before a kernel runs."""
    from triton.runtime import interpreter

    # Before Triton 3.8 the interpreter's maximum of a number and NaN is NaN; compiled kernels give the number.
    interpreter.InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)
    _patch_once(interpreter)
    _patch_plainly(interpreter)
    _remember_types(interpreter)
    _remember_operands(interpreter)


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


def _patch_plainly(interpreter) -> None:
    """A function of the language gets the interpreter's semantics without a dictionary copied and looked through."""

    def patch_attr(obj, name, member, builder, scope):
        def interpreted(*args, **kwargs):
            kwargs["_semantic"] = interpreter.interpreter_semantic
            return member(*args, **kwargs)

        scope.set_attr(obj, name, interpreted)

    interpreter._patch_attr = patch_attr


def _remember_types(interpreter) -> None:
    """What depends on an element's type and a shape alone is made once; blocks of the same shape share it."""
    from triton.language import core, semantic

    computed = semantic.TritonSemantic.computation_type_impl
    semantic.TritonSemantic.computation_type_impl = functools.cache(computed)
    make_block, make_tensor, equal = core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__
    unwrap, numpy_type = core._unwrap_if_constexpr, interpreter._get_np_dtype
    blocks, shapes, of_tensors, numpy_types = {}, {}, {}, {}
    as_they_are = {int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type}

    def block_type(self, element_ty, shape):
        sizes = shape.values if type(shape) is core.tuple else shape
        key = (element_ty.name, *sizes) if type(element_ty) is core.dtype else None
        if key not in blocks:
            make_block(self, element_ty, shape)
            self.shape = shapes.setdefault(tuple(self.shape.values), self.shape)
            if key is None or any(type(size) is not int for size in sizes):  # pointers, numbers of the language
                return
            blocks[key] = dict(self.__dict__)
        self.__dict__.update(blocks[key])

    def tensor(self, handle, type):
        key = id(type.shape) if type.is_block() else 0
        if key not in of_tensors:
            make_tensor(self, handle, type)
            of_tensors[key] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = of_tensors[key]

    def same_tuple(self, other):
        if self is other:
            return True
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
        if scalar.name not in numpy_types:
            numpy_types[scalar.name] = numpy_type(type)
        return numpy_types[scalar.name]

    core.block_type.__init__, core.tensor.__init__, core.tuple.__eq__ = block_type, tensor, same_tuple
    core._unwrap_if_constexpr, interpreter._get_np_dtype = unwrap_if_constexpr, get_np_dtype


def _remember_operands(interpreter) -> None:
    """Operands of one type are taken as they are, others get a shape found before, and a number is one tensor for all
    operations with blocks of the same type."""
    from triton.language import core, semantic

    check = semantic.TritonSemantic.binary_op_type_checking_impl
    broadcast = semantic.TritonSemantic.broadcast_impl_value
    wider, numbers = {}, {}

    def shape_of(x):
        return x.type.shape if x.type.is_block() else None  # of which there is one per shape: _remember_types

    def spread(x, shape):
        handle = interpreter.TensorHandle(np.broadcast_to(x.handle.data, shape.values), x.handle.dtype)
        return core.tensor(handle, core.block_type(x.dtype, shape))

    def broadcast_once(self, lhs, rhs):
        a, b = shape_of(lhs), shape_of(rhs)
        if a is b:
            return lhs, rhs
        shape = wider.get((id(a), id(b)))
        if shape is None:
            lhs, rhs = broadcast(self, lhs, rhs)
            wider[id(a), id(b)] = lhs.type.shape
            return lhs, rhs
        return lhs if a is shape else spread(lhs, shape), rhs if b is shape else spread(rhs, shape)

    def alike(a, b, allow_lhs_ptr=False, allow_rhs_ptr=False, arithmetic_check=True, div_or_mod=False):
        if type(a) is type(b) is core.dtype:
            return a.name == b.name and (not div_or_mod or a.primitive_bitwidth >= 32)
        return type(a) is core.pointer_type and allow_lhs_ptr and type(b) is core.dtype and b.is_int()

    def check_once(self, lhs, rhs, *options, **named):
        if type(lhs) is type(rhs) is core.tensor:
            if alike(lhs.dtype, rhs.dtype, *options, **named):
                return broadcast_once(self, lhs, rhs)
            return check(self, lhs, rhs, *options, **named)
        number, block = (rhs, lhs) if type(lhs) is core.tensor else (lhs, rhs)
        if type(number) not in (int, float) or type(block) is not core.tensor or type(block.dtype) is not core.dtype:
            return check(self, lhs, rhs, *options, **named)
        exactly = type(number), number, math.copysign(1, number)  # 0.0 and -0.0 are equal
        key = number is rhs, *exactly, block.dtype.name, id(shape_of(block)), options, *named.items()
        if key in numbers:
            return (block, numbers[key]) if number is rhs else (numbers[key], block)
        left, right = check(self, lhs, rhs, *options, **named)
        if block is (left if number is rhs else right):  # which keeps its type
            numbers[key] = right if number is rhs else left
        return left, right

    semantic.TritonSemantic.broadcast_impl_value = broadcast_once
    semantic.TritonSemantic.binary_op_type_checking_impl = check_once
    # Compiled kernels do not look for integers that overflow; here each sum of two would be three of 64 bits.
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    interpreter.TensorHandle.__post_init__ = lambda self: None
