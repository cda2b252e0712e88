"""ncops.measure() of features on a GPU, with labels and classifier wherever they are."""

from __future__ import annotations

import math

import pytest
import torch

import ncops


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 11, (5000,), generator=generator)
    weight = torch.randn(12, 48, generator=generator)  # the last class is never seen
    return weight[y] + 0.5 * torch.randn(5000, 48, generator=generator), y, weight, torch.randn(12, generator=generator)


@pytest.mark.parametrize("labels", ["cuda", "cpu", "numpy"])
def test_it_agrees_with_the_cpu(labels):
    x, y, weight, bias = data()
    there = ncops.measure(x, y, weight, bias, val_features=x[:999], val_labels=y[:999], batch=700)
    given = y.numpy() if labels == "numpy" else y.to(labels)
    here = ncops.measure(
        x.cuda(), given, weight, bias.cuda(), val_features=x[:999].numpy(), val_labels=given[:999], batch=700
    )
    for name, value in there.items():
        assert here[name] == pytest.approx(value, rel=1e-4, abs=2e-3 if "acc" in name or name == "ece" else 1e-5), name
    assert here.coverage == there.coverage and here.provenance["device_name"]
    ours, theirs = here.classes().to_dict(), there.classes().to_dict()
    assert ours["class"] == theirs["class"] and ours["count"] == theirs["count"]
    for a, b in zip(ours["row_cosine"], theirs["row_cosine"], strict=True):
        assert a == pytest.approx(b, abs=1e-5) or (math.isnan(a) and math.isnan(b))


def test_a_bad_label_is_an_error_before_any_work():
    x, y, weight, bias = data()
    y[4321] = 12
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 12\).*got 12 at row 4321 of 5000"):
        ncops.measure(x.cuda(), y.cuda(), weight.cuda(), bias.cuda())
