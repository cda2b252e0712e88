"""The tables of planted defects (tools/mutants) fit the code; running them takes hours and is not done here."""

from __future__ import annotations

import pytest

mutants = pytest.importorskip("tools.mutants", reason="tools/ is part of the repository, not of the package")


@pytest.mark.parametrize("source", mutants.SOURCES, ids=lambda source: source.path)
def test_every_defect_has_its_place(source):
    for plant in source:
        text = source.planted(plant)
        if source.path.endswith(".py"):
            compile(text, source.path, "exec")


def test_there_are_enough():
    assert sum(not plant.equivalent for source in mutants.SOURCES for plant in source) >= 150
