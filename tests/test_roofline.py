"""The roofline on paper: terms by hand, and the page that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncops.bench import roofline
from ncops.bench.gpu import CASES

ROOT = Path(__file__).resolve().parent.parent


def test_terms_by_hand():
    cases = {case.title: case for case in CASES}
    e = roofline.estimate(cases["linear_stats bfloat16"])
    assert e.products == pytest.approx(2 * 8192 * 4096 * 128256 / 989e12) and e.bound == "products"
    assert e.memory == pytest.approx(2 * 4096 * (8192 + 128256) / 3.35e12)
    e = roofline.estimate(cases["class_moments 1000 classes"])
    assert e.products == 0 and e.memory == pytest.approx(4 * 1_000_000 * 1024 / 3.35e12) and e.bound == "memory"


def test_the_page_shows_what_the_command_prints():
    assert roofline.table() in (ROOT / "docs" / "gpu.md").read_text()
