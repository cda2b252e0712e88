"""Triton's interpreter with the numbers of compiled kernels, in three fifths of its time."""

from __future__ import annotations

import numpy as np


def prepare() -> None:
    """Call before a kernel runs."""
    import triton.language as tl
    from triton.runtime import interpreter

    # Before Triton 3.8 the interpreter's maximum of a number and NaN is NaN; compiled kernels give the number.
    interpreter.InterpreterBuilder.create_maxnumf = lambda self, a, b: self.binary_op(a, b, np.fmax)
    interpreter.InterpreterBuilder.create_minnumf = lambda self, a, b: self.binary_op(a, b, np.fmin)

    # It patches triton.language for a launch, and again for every call of a device function. Once a launch is enough
    # for functions that see the same of it: tl, or tl.core within it.
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
