"""The order of planes is written down in Python, C++ and Triton: alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ncops.backends.planes import (
    DIVERGENCE_PLANES,
    DIVERGENCE_RATIOS,
    DIVERGENCE_SHARE_FLOATS,
    DIVERGENCE_SHARE_INDICES,
    FLOATS,
    INDICES,
    SHARE_FLOATS,
    SHARE_INDICES,
)
from ncops.ops import LinearStats
from ncops.reference.logit_share import LogitShare

ROOT = Path(__file__).resolve().parent.parent


def test_the_result_and_the_reference_have_every_plane():
    assert {*FLOATS, *INDICES} <= {*LinearStats._fields}
    assert LogitShare._fields == (*SHARE_FLOATS, *SHARE_INDICES)


@pytest.mark.parametrize(
    ("enum", "prefix", "count", "names"),
    [
        ("FloatColumn", "k", "kFloatColumns", FLOATS),
        ("IndexColumn", "k", "kIndexColumns", INDICES),
        ("Column", "k", "kColumns", DIVERGENCE_PLANES),
        ("SharePlane", "kShare", "kShareFloats", DIVERGENCE_SHARE_FLOATS),
        ("ShareIndex", "kShare", "kShareIndices", DIVERGENCE_SHARE_INDICES),
        ("Ratio", "kSum", "kRatios", DIVERGENCE_RATIOS),
    ],
)
def test_the_enumerators_of_cpp(enum, prefix, count, names):
    body = re.search(rf"enum {enum} : int {{(.*?)}}", (ROOT / "csrc" / "columns.h").read_text(), re.S)[1]
    *found, last = (name.strip() for name in body.split(","))
    assert [re.sub(r"(?<!^)(?=[A-Z])", "_", name.removeprefix(prefix)).lower() for name in found] == [*names]
    assert last == count


def test_the_numbers_of_triton():
    pytest.importorskip("triton")
    from ncops.triton_kernels import _logit_gradient, _logit_state

    assert [getattr(_logit_gradient, name.upper()).value for name in FLOATS] == [*range(len(FLOATS))]
    assert [getattr(_logit_state, name.upper()).value for name in SHARE_FLOATS] == [*range(len(SHARE_FLOATS))]
