"""Nothing is imported that was not asked for, and what is missing is named."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("name", "hidden", "extra"),
    [
        ("torchmetrics", ("torchmetrics",), "metrics"),
        ("lightning", ("lightning", "lightning.pytorch", "pytorch_lightning"), "lightning"),
        ("transformers", ("transformers",), "lm"),
    ],
)
def test_a_missing_library_names_its_extra(name, hidden, extra, monkeypatch):
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    for module in (f"ncops.integrations.{name}", "ncops.integrations._metric_state"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"needs the package '{name}': pip install 'ncops\[{extra}\]'"):
        importlib.import_module(f"ncops.integrations.{name}")


def test_ncops_imports_none_of_them():
    code = "import sys, ncops; print(sorted({'torchmetrics', 'lightning', 'transformers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_few_programs_need_is_imported_when_it_is_named():
    code = (
        "import sys, ncops\n"
        "names = 'lm', 'distributed', 'compat', 'integrations', 'nn', 'report.comparison'\n"
        "lazy = ['ncops.' + name for name in names]\n"
        "assert not set(lazy) & set(sys.modules) and 'lm' in dir(ncops)\n"
        "assert {'lens', 'Lens', 'watch'} <= set(dir(ncops)) & set(ncops.__all__)\n"
        "ncops.lens, ncops.Lens, ncops.watch\n"
        "ncops.lm.measure, ncops.distributed.linear_stats, ncops.compat.install\n"
        "ncops.integrations, ncops.nn.LinearHead, ncops.report.compare\n"
        "assert set(lazy) <= set(sys.modules) and not hasattr(ncops, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
