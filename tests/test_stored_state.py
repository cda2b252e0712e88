"""States that are none: crafted and damaged configurations and tensors are a ValueError that names file and field."""

from __future__ import annotations

import copy
import json
import random
import struct

import pytest
import torch
from safetensors.torch import save_file

import ncops
from ncops import ClassStatistics, DecisionStatistics
from ncops.stats import files

C, D = 5, 3


def states() -> dict[str, ncops.ClassStatistics | ncops.DecisionStatistics]:
    x, y = torch.randn(60, D), torch.arange(60) % (C - 1)  # the last class has no rows
    classes = ClassStatistics(C, D, scatter=True)
    classes.update(x, y)
    decisions = DecisionStatistics(classes.compute(), torch.randn(C, D))
    decisions.update(x, y)
    return {"ClassStatistics": classes, "DecisionStatistics": decisions}


def write(path, kind, config, tensors):
    """A file whose hash is right, whatever it says."""
    files.save_state(path, kind, config, tensors)


def put(name, index, value):
    def change(config, tensors):
        tensors[name] = tensors[name].clone()
        tensors[name][index] = value

    return change


def config(**changes):
    return lambda config, tensors: config.update(changes)


def convention(**changes):
    return lambda config, tensors: config["convention"].update(changes)


def tensor(name, value):
    return lambda config, tensors: tensors.update({name: value})


NAN, INF = float("nan"), float("inf")
ABSENT = object()
CLASSES = [
    (config(num_classes=2**62), "num_classes"),
    (config(num_classes=10**30), "num_classes"),
    (config(num_classes=6), r"counts: expected torch.int64 \(6,\)"),
    (config(num_classes=0), "num_classes"),
    (config(num_classes=True), "config: num_classes: expected int, got True"),
    (config(num_classes=5.0), "config: num_classes: expected int, got 5.0"),
    (config(num_classes=None), "config: num_classes: expected int, got None"),
    (config(num_classes=[[[[[[[[5]]]]]]]]), "config: num_classes: expected int, got "),
    (config(dim=2**61), "dim"),
    (config(dim="3"), "config: dim: expected int, got '3'"),
    (config(scatter=1), "config: scatter: expected bool, got 1"),
    (config(nonfinite="drop"), "nonfinite: expected one of"),
    (config(nonfinite={}), "config: nonfinite: expected str"),
    (config(ignore_index=2**70), "ignore_index"),
    (config(input_dtype="nn"), "config: input_dtype: expected one of float32"),
    (config(input_dtype="int64"), "config: input_dtype: expected one of float32"),
    (config(input_dtype=7), "config: input_dtype: expected str or None, got 7"),
    (config(input_dtype=None), "expected the tensors"),
    (config(input_dtype="float64"), "center: expected torch.float64"),
    (config(more=1), "config: expected the names .*, got .*more"),
    (lambda config, tensors: config.pop("dim"), "config: expected the names"),
    (lambda config, tensors: tensors.pop("sums"), "expected the tensors"),
    (tensor("counts", torch.zeros(C)), "counts: expected torch.int64"),
    (tensor("counts", torch.zeros(C, 1, dtype=torch.int64)), "counts: expected torch.int64"),
    (tensor("counts", torch.tensor(5)), "counts: expected torch.int64"),
    (put("counts", 1, -1), "counts: expected numbers of rows, got -1 at 1"),
    (put("counts", slice(None), 2**62), r"counts: expected fewer than 2\^62 rows"),
    (put("counts", 1, 0), "sums, sqnorms: class 1"),
    (put("skipped", (), -3), "skipped: expected numbers of rows, got -3"),
    (put("invalid", (), -1), "invalid: expected numbers of rows"),
    (put("sums", (2, 1), NAN), "sums, sqnorms: class 2"),
    (put("sums", (2, 1), 1e30), "sums, sqnorms: class 2"),
    (put("sums", (4, 0), 1.0), "sums, sqnorms: class 4"),
    (put("sums", (4, 0), INF), "sums, sqnorms: class 4"),
    (put("sqnorms", 3, -1.0), "sqnorms: expected sums of squares, got -1.0 at 3"),
    (put("sqnorms", 4, NAN), "sums, sqnorms: class 4"),
    (put("center", (0, 2), INF), "center: class 0: expected finite"),
    (put("center", (4, 2), NAN), "center: class 4: expected finite"),
    (put("scatter", (1, 1), NAN), r"scatter: expected finite numbers.*at \(1, 1\)"),
]
DECISIONS = [
    (config(num_classes=2**61), "num_classes"),
    (config(num_classes=10**30), "num_classes"),
    (config(num_classes=-5), "num_classes"),
    (config(scale=NAN), "config: scale: expected float, got nan"),
    (config(scale="1"), "config: scale: expected float"),
    (config(softcap="1"), "config: softcap: expected float or None, got '1'"),
    (config(softcap=-1.0), "softcap: expected None or a positive number"),
    (config(convention="ncops"), "config: convention: expected dict, got 'ncops'"),
    (config(convention={}), "config: convention: expected the names"),
    (convention(other=1), "config: convention: expected the names"),
    (convention(nc1_divide="yes"), "config: convention: nc1_divide: expected bool, got 'yes'"),
    (convention(similarity="odd"), "similarity: expected 'cosine' or 'dot', got 'odd'"),
    (convention(cdnv_power=INF), "cdnv_power"),
    (convention(name=None), "config: convention: name: expected str"),
    (tensor("kept", torch.ones(C)), "kept: expected torch.bool"),
    (put("agree", 2, 10**6), "agree: expected at most the rows of the class, got 1000000 at 2"),
    (put("ncc_hit", 4, 1), "ncc_hit: expected at most the rows of the class"),
    (put("hit", 1, -1), "hit: expected numbers of rows, got -1 at 1"),
    (put("nll", 0, NAN), "nll: expected sums of -log p, got nan at 0"),
    (put("nll", 4, 1.0), "nll: expected 0 in a class without rows, got 1.0 at 4"),
    (put("count", 0, 10**6), "confidence_count: expected"),
    (put("entropy_hist", 3, 10**6), "entropy_hist: expected at most 60 rows"),
    (put("margin_hist", 65, 10**6), "margin_hist: expected at most 60 rows"),
    (put("confidence_sum", 0, 1e9), "confidence_sum: expected a sum of probabilities"),
    (put("confidence_sum", 0, NAN), "confidence_sum: expected a sum of probabilities"),
    (put("excluded", (), -1), "excluded: expected numbers of rows"),
]
CASES = [("ClassStatistics", *case) for case in CLASSES] + [("DecisionStatistics", *case) for case in DECISIONS]


@pytest.mark.parametrize(("kind", "change", "message"), CASES)
def test_what_is_no_state_is_refused(tmp_path, kind, change, message):
    stats = states()[kind]
    config, tensors = copy.deepcopy(stats.config()), stats.tensors()
    change(config, tensors)
    write(tmp_path / "crafted", kind, config, tensors)
    with pytest.raises(ValueError, match=message) as error:
        ncops.load(tmp_path / "crafted")
    assert str(error.value).startswith(f"path: {tmp_path / 'crafted'} is damaged: ") and "\n" not in str(error.value)
    before = {name: value.clone() for name, value in stats.tensors().items()}
    with pytest.raises(ValueError, match=message):
        stats.load_state_dict({**tensors, "config": config})
    assert all(torch.equal(value, before[name]) for name, value in stats.tensors().items())


@pytest.mark.parametrize("kind", ("ClassStatistics", "DecisionStatistics"))
def test_a_state_that_is_no_dictionary_of_tensors(kind):
    stats = states()[kind]
    good = stats.state_dict()
    for state, message in (
        (None, "state: expected a dictionary of tensors and 'config', got NoneType"),
        ([], "got list"),
        ({}, "state: expected a dictionary"),
        (stats.tensors(), "got the names"),
        ({**good, "config": None}, "config: expected a dictionary, got NoneType"),
        ({**good, 3: 1}, "expected the tensors"),
        ({**good, "ignored": 4}, "ignored: expected a dense tensor, got int"),
        ({**good, "ignored": good["ignored"].to_sparse()}, "ignored: expected a dense tensor, got torch.sparse"),
        ({**good, "ignored": good["ignored"].to("meta")}, "ignored: expected all tensors on one device"),
    ):
        with pytest.raises(ValueError, match=message):
            stats.load_state_dict(state)


@pytest.mark.parametrize("nonfinite", ("propagate", "skip"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("scale", (1e-30, 1e-3, 1.0, 3e38))
def test_what_updates_make_is_read_again(tmp_path, nonfinite, dtype, scale):
    """Spoilt classes, squares that overflow or vanish, classes far from their first row, sums of several parts."""
    total = None
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        x = (scale * torch.randn(70, D, generator=g, dtype=torch.float64)).to(dtype)
        x[::7] += 100 * scale
        x[::23, 1] = NAN if seed else INF
        stats = ClassStatistics(C, D, scatter=True, nonfinite=nonfinite)
        stats.update(x, torch.arange(70) % (C - 1))
        ClassStatistics.from_state(stats.config(), stats.tensors()).check_values()
        stats.update(-x, torch.arange(70) % (C - 1))
        total = stats if total is None else total.merge(stats)
        total.save(tmp_path / "stats")
        loaded = ncops.load(tmp_path / "stats")
        for name, value in total.tensors().items():
            torch.testing.assert_close(getattr(loaded, name), value, rtol=0, atol=0, equal_nan=True)


def test_decisions_that_are_infinitely_wrong_are_read_again(tmp_path):
    x, y = torch.randn(60, D), torch.arange(60) % C
    classes = ClassStatistics(C, D)
    classes.update(x, y)
    bias = torch.zeros(C)
    bias[2] = -INF
    x[7] = NAN
    decisions = DecisionStatistics(classes.compute(), torch.randn(C, D), bias)
    decisions.update(x, y)
    assert decisions.nll[2] == INF and decisions.skipped == 1
    decisions.save(tmp_path / "d")
    assert torch.equal(ncops.load(tmp_path / "d").nll, decisions.nll)


@pytest.mark.parametrize("kind", ("ClassStatistics", "DecisionStatistics"))
def test_any_json_in_the_place_of_any_other(tmp_path, kind):
    """Every value of the configuration replaced by values of every type: a ValueError that names the file, or none."""
    stats = states()[kind]
    deep = "[" * 900 + "]" * 900
    texts = ["null", "true", "-1", "1e999", "NaN", '"x"', "[]", "{}", "9" * 4000, "9" * 6000, deep, '"\\ud800"']
    for name in stats.config():
        for text in texts:
            document = {
                "format": "ncops-stats", "version": 2, "kind": kind, "config": {**stats.config(), name: "HERE"}
            }  # fmt: skip
            save_file(stats.tensors(), tmp_path / "f", {"ncops": json.dumps(document).replace('"HERE"', text)})
            try:
                ncops.load(tmp_path / "f")
            except ValueError as error:
                assert str(error).startswith(f"path: {tmp_path / 'f'} ") and len(str(error)) < 1000, text
            else:
                taken = (("ignore_index", "-1"), ("scale", "-1"), ("scatter", "true"), ("normalize", "true"))
                assert (name, text) in (*taken, ("softcap", "null"))


def test_flipped_headers_of_files_without_a_hash(tmp_path):
    """Files of older releases have none: whatever a flip makes of one, it is read, or a ValueError that names it."""
    stats = states()["ClassStatistics"]
    document = {"format": "ncops-stats", "version": 2, "kind": "ClassStatistics", "config": stats.config()}
    save_file(stats.tensors(), tmp_path / "old", {"ncops": json.dumps(document)})
    data = (tmp_path / "old").read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    chosen = random.Random(0)
    for place in range(header):
        changed = bytearray(data)
        changed[place] ^= 1 << chosen.randrange(8)
        (tmp_path / "flipped").write_bytes(changed)
        try:
            ncops.load(tmp_path / "flipped")
        except ValueError as error:
            assert "flipped" in str(error), place
