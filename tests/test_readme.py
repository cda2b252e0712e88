"""The README's Python runs as it stands, top to bottom, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    means = torch.randn(10, 16) * 3

    def sample(n):
        y = torch.arange(n) % 10
        return means[y] + torch.randn(n, 16), y

    features, labels = sample(400)
    held_out, held_out_labels = sample(100)
    names = {
        "features": features, "labels": labels, "held_out": held_out, "held_out_labels": held_out_labels,
        "weight": means.clone(), "bias": -means.square().sum(1) / 2,
        "loader": lambda x, y: zip(x.split(64), y.split(64), strict=True),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "nc4_agreement" in printed and "Class by class" in (tmp_path / "report.html").read_text()
    assert names["x"].grad.isfinite().all() and names["head"].grad.abs().max() > 0
    exact = torch.stack([features[labels == c].double().var(0, unbiased=False).sum() for c in range(10)])
    torch.testing.assert_close(names["variances"], exact, rtol=1e-4, atol=0)


def test_named_targets_and_switches_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
    patterns = ("ncops/**/*.py", "csrc/**/*.cpp", "triton_kernels/*.py", "setup.py")
    sources = "".join(path.read_text() for pattern in patterns for path in ROOT.glob(pattern))
    for switch in set(re.findall(r"NCOPS_[A-Z_]+", README)):
        assert f'"{switch}"' in sources, switch
