"""docs/papers.md: every paper, its lines run, every result equal to its formula in NumPy, gradients to differences."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy_papers import PAPERS, data
from test_docs import python_blocks

PAGE = Path(__file__).resolve().parent.parent / "docs" / "papers.md"
IDS = [f"P{number:02d}" for number in range(1, 58)]

# Results that their papers train with.
TRAINED = {
    "P02": "l_nc1 l_nc2", "P03": "maxsup smoothed", "P05": "supcon", "P12": "energy",
    "P13": "student_truth teacher_truth student_teacher student_mean teacher_mean", "P22": "cka",
    "P25": "haf_duality haf_loss", "P26": "sse_loss", "P28": "kd_sim kd_topk", "P30": "z_loss", "P31": "spherical",
    "P32": "logistic sum_exp gce mae", "P33": "ldr ldr_code aldr", "P34": "probability_margin logit_margin dlr",
    "P35": "correctness", "P37": "mrl mndcg", "P38": "sar", "P39": "plpd deyo", "P40": "penalty", "P41": "shrunk_loss",
    "P42": "unpg", "P43": "hl_loss", "P44": "drop displacement", "P46": "cwtm dkpp", "P47": "binary_kl binary_kl_norm",
    "P48": "forward_kl reverse_kl balanced", "P49": "symmetric_ce", "P50": "tckd nckd atkd", "P51": "pld",
    "P52": "relation", "P54": "uniformity tolerance", "P55": "tcm", "P56": "proto_triplet", "P57": "lid ldreg",
}  # fmt: skip
OPEN = {"P05", "P18", "P21", "P28", "P35", "P37", "P44", "P45", "P46", "P48", "P56"}
"""Papers whose wording leaves something open; what they are taken for is compared as well."""
DATA = ("x", "W", "b", "x_t", "W_t", "b_t", "x_aug", "x_mix", "q", "k", "theta")
"""What gradients flow to."""
TOLERANCE = {"P40": 1e-6, "P53": 1e-8}  # 1e-9 in its logarithms; of 1e-16 in each share of the code's entropy


def sections() -> dict[str, str]:
    """Text of each paper's section, by id, in the order of the page."""
    parts = re.split(r"^### (P\d\d) .+$", PAGE.read_text(), flags=re.M)
    return {name: re.split(r"^## ", text, flags=re.M)[0] for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def names_of(code: str, context: type) -> set[str]:
    """Names that the lines of a block bind (``ast.Store``) or read (``ast.Load``), not those inside functions."""
    lines = ast.Module([line for line in ast.parse(code).body if not isinstance(line, ast.FunctionDef)], [])
    loops = [node.target for node in ast.walk(lines) if isinstance(node, ast.comprehension)]
    inner = {node.id for target in loops for node in ast.walk(target) if isinstance(node, ast.Name)}
    names = {n.id for n in ast.walk(lines) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}
    return names if context is ast.Load else names - inner


def copied(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


class Page:
    """The page, run with gradients; ``given`` are its data, ``results`` what each paper's block has bound."""

    def __init__(self) -> None:
        data_block, shared_block, *blocks = [code for _, code in python_blocks(PAGE)]
        names: dict = {}
        exec(data_block, names)
        self.given = {name: copied(value) for name, value in names.items()}
        self.moving = {name: names[name].requires_grad_() for name in DATA}
        exec(shared_block, names)
        self.shared, self.results = set(names), {}
        self.codes = dict(zip(IDS, blocks, strict=True))
        for paper, code in self.codes.items():
            own = dict(names)  # of no other paper
            exec(code, own)
            self.results[paper] = {name: own[name] for name in names_of(code, ast.Store)}
        self.given["rows"] = self.results["P25"]["rows"].detach()  # of a random orientation
        self.expected = {paper: PAPERS[paper](data(self.given)) for paper in IDS}


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


def test_every_paper_is_there_in_order():
    assert list(sections()) == IDS == list(PAPERS)
    for paper, text in sections().items():
        assert ("*Open*: " in text) == (paper in OPEN), paper
        assert text.count("```python\n") == 1 and len(text.split("```python")[0].split()) >= 4, paper


def test_what_a_block_ends_in_is_compared(page):
    """Everything it binds is compared or read, and it changes none of the data."""
    for paper, code in page.codes.items():
        bound, read = names_of(code, ast.Store), names_of(code, ast.Load)
        assert page.expected[paper] and set(page.expected[paper]) <= bound, paper
        assert bound - read <= set(page.expected[paper]), paper
        assert not bound & page.shared, paper


@pytest.mark.parametrize("paper", IDS)
def test_results_are_those_of_the_formula(page, paper):
    for name, expected in page.expected[paper].items():
        found, expected = np.asarray(copied(page.results[paper][name])), np.asarray(expected)
        assert found.shape == expected.shape, name
        rtol = TOLERANCE.get(paper, 1e-9)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.nanmax(np.abs(expected)), err_msg=name)


@pytest.mark.parametrize("paper", TRAINED)
def test_gradients_are_those_of_the_formula(page, paper):
    """Along a random direction of all data, and a random combination of the entries of a result."""
    random, step = np.random.default_rng(int(paper[1:])), 1e-6
    ways = {name: random.standard_normal(tensor.shape) for name, tensor in page.moving.items()}
    ends = []
    for sign in (1, -1):
        moved = {name: page.given[name].numpy() + sign * step * way for name, way in ways.items()}
        ends.append(PAPERS[paper](data(page.given, moved)))
    for name in TRAINED[paper].split():
        result = page.results[paper][name]
        part = random.standard_normal(result.shape)
        combined = (result * torch.as_tensor(part)).sum()
        slopes = torch.autograd.grad(combined, [*page.moving.values()], retain_graph=True, materialize_grads=True)
        found = sum(float((s * torch.as_tensor(way)).sum()) for s, way in zip(slopes, ways.values(), strict=True))
        expected = np.sum(part * (np.asarray(ends[0][name]) - np.asarray(ends[1][name]))) / (2 * step)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8), name
        assert abs(expected) > 1e-8, f"{name} does not move"


def test_variability_collapse_is_the_error_of_a_probe():
    """What the page says of even classes."""
    from ncops import class_moments, class_scatter, metrics

    x, y = torch.randn(60, 7, dtype=torch.float64), torch.arange(60) % 5
    means = class_moments(x, y, 5).sums / 12
    vci = metrics.vci(class_scatter(x, y, means) / 60, means)
    rows = np.concatenate([x.numpy(), np.ones((60, 1))], 1)
    truth = np.eye(5)[y.numpy()]
    error = ((rows @ np.linalg.lstsq(rows, truth, rcond=None)[0] - truth) ** 2).sum(1).mean()
    assert float(vci) * (1 - 1 / 5) == pytest.approx(error)


def test_supervised_contrast_at_an_orthogonal_frame():
    """What the page says of it."""
    from ncops import losses

    y = torch.arange(12) % 3
    found = losses.supervised_contrastive(torch.eye(5, dtype=torch.float64)[y], y, temperature=0.5)
    assert float(found) == pytest.approx(np.log(3 + 8 * np.exp(-2)))
