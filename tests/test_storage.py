"""Statistics on disk: what is read is what was written, and half a file is never taken for a whole one."""

from __future__ import annotations

import json
import math
import os
import random
import struct

import pytest
import safetensors.torch
import torch

import ncops
from ncops import ClassStatistics, DecisionStatistics
from ncops.stats import files as storage


def make(dtype=torch.float32, scatter=True):
    x, y = torch.randn(300, 6, dtype=dtype), torch.randint(0, 5, (300,))
    stats = ClassStatistics(7, 6, scatter=scatter, nonfinite="skip", ignore_index=-1)
    stats.update(x, y)
    return stats, x, y


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16))
@pytest.mark.parametrize("scatter", (True, False))
def test_round_trip(tmp_path, dtype, scatter):
    stats, x, y = make(dtype, scatter)
    path = tmp_path / "a.safetensors"
    stats.save(path)
    loaded = ncops.load(path)
    assert isinstance(loaded, ClassStatistics)
    assert loaded.state_dict()["config"] == stats.state_dict()["config"]
    for name, value in stats.state_dict().items():
        if name != "config":
            assert torch.equal(getattr(loaded, name), value) and getattr(loaded, name).dtype == value.dtype
    stats.update(x, y)
    loaded.update(x, y)
    assert torch.equal(loaded.sums, stats.sums) and torch.equal(loaded.center, stats.center)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_rows_do_is_stored_too(tmp_path):
    stats = ncops.ClassStatistics(3, 2, nonfinite="skip", ignore_index=-7)
    x = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [3.0, 4.0], [5.0, 6.0]])
    stats.update(x, torch.tensor([0, 1, -7, 2]))
    stats.save(tmp_path / "s")
    again = ncops.load(tmp_path / "s")
    assert (again.nonfinite, again.ignore_index) == ("skip", -7)
    again.update(x, torch.tensor([0, 1, -7, 2]))
    assert again.counts.tolist() == [2, 0, 2] and (int(again.skipped), int(again.ignored)) == (2, 2)


def test_round_trip_before_any_update(tmp_path):
    stats = ClassStatistics(4, 3)
    stats.save(tmp_path / "empty")
    loaded = ncops.load(str(tmp_path / "empty"))
    assert loaded.input_dtype is None and loaded.center is None
    loaded.update(torch.randn(5, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.long))


def test_decisions_round_trip(tmp_path):
    stats, x, y = make()
    geometry, weight = stats.compute(), torch.randn(7, 6)
    dec = DecisionStatistics(geometry, weight, convention="papyan", scale=0.5, softcap=2.0)
    dec.update(x, y)
    dec.save(tmp_path / "d.safetensors")
    loaded = ncops.load(tmp_path / "d.safetensors")
    assert isinstance(loaded, DecisionStatistics) and loaded.convention == dec.convention
    assert (loaded.scale, loaded.softcap) == (0.5, 2.0)
    report = ncops.collapse(geometry, weight, decisions=loaded, convention="papyan")
    assert report["accuracy"] == ncops.collapse(geometry, weight, decisions=dec, convention="papyan")["accuracy"]
    with pytest.raises(RuntimeError, match="bind"):
        loaded.update(x, y)
    with pytest.raises(ValueError, match="other classes"):
        loaded.bind(stats.compute(min_count=60), weight)
    loaded.bind(geometry, weight).update(x, y)
    assert torch.equal(loaded.count, 2 * dec.count)
    assert loaded.merge(dec).num_samples == 900


def test_a_file_cut_anywhere_is_refused(tmp_path):
    stats, *_ = make()
    whole = tmp_path / "whole.safetensors"
    stats.save(whole)
    data = whole.read_bytes()
    header = struct.unpack("<Q", data[:8])[0]
    for size in (
        0,
        1,
        7,
        8,
        9,
        8 + header // 2,
        8 + header,
        8 + header + 1,
        len(data) // 2,
        len(data) - 8,
        len(data) - 1,
    ):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError, match="is not a whole file"):
            ncops.load(cut)
    cut.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="is not a whole file"):
        ncops.load(cut)


@pytest.mark.parametrize("when", ("write", "flush", "rename"))
def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch, when):
    stats, x, y = make()
    path = tmp_path / "a.safetensors"
    stats.save(path)
    old = path.read_bytes()
    stats.update(x, y)

    def half(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(old[: len(old) // 2])
        raise KeyboardInterrupt

    def interrupt(*_):
        raise KeyboardInterrupt

    if when == "write":
        monkeypatch.setattr(safetensors.torch, "save_file", half)
    else:
        monkeypatch.setattr(storage.os, "fsync" if when == "flush" else "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stats.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.safetensors"]
    stats.save(path)
    assert torch.equal(ncops.load(path).counts, stats.counts)


def test_a_first_save_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        make()[0].save(tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").write_text("")
    storage.write_file(tmp_path / "a", "\u00e9\n")
    make()[0].save(tmp_path / "b")
    assert len({(tmp_path / name).stat().st_mode for name in ("other", "a", "b")}) == 1
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    storage.write_file(tmp_path / "link", b"2")
    assert (tmp_path / "a").read_bytes() == b"2" and (tmp_path / "link").is_symlink()
    make()[0].save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and ncops.load(tmp_path / "a").num_classes == 7


@pytest.mark.parametrize("error", (KeyboardInterrupt, OSError))
def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path, error):
    storage.write_file(tmp_path / "a", "old")
    with pytest.raises(error), storage.replacing(tmp_path / "a") as name:
        open(name, "w").close()
        raise error
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"
    with pytest.raises(FileNotFoundError, match=r"none/a'$"):
        storage.write_file(tmp_path / "none" / "a", "new")


def write(path, tensors, **metadata):
    safetensors.torch.save_file(tensors, path, {k: str(v) for k, v in metadata.items()} or None)


def test_equal_states_make_equal_files(tmp_path):
    stats, *_ = make()
    for i in range(6):
        stats.save(tmp_path / str(i))
    first = (tmp_path / "0").read_bytes()
    assert all((tmp_path / str(i)).read_bytes() == first for i in range(6))


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    stats, *_ = make()
    with pytest.raises(FileNotFoundError, match=f"path: no folder {tmp_path / 'none'}$"):
        stats.save(tmp_path / "none" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="path: expected a file, got the folder"):
        stats.save(tmp_path / "folder")

    def full(*_):
        raise safetensors.SafetensorError("no space left")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="path: .*/a cannot be written: no space left"):
        stats.save(tmp_path / "a")
    assert os.listdir(tmp_path) == ["folder"]


def test_origin_is_kept_beside_the_state(tmp_path):
    stats, *_ = make()
    path, origin = tmp_path / "a", {"model": "m", "classifier": "00ff"}
    storage.save_state(path, "ClassStatistics", stats.config(), stats.tensors(), origin)
    assert storage.read_origin(path) == origin and torch.equal(ncops.load(path).counts, stats.counts)
    stats.save(path)
    assert storage.read_origin(path) is None


def test_files_of_version_1_are_read(tmp_path):
    stats, *_ = make()
    metadata = {"format": "ncops-stats", "version": "1", "kind": "ClassStatistics"}
    write(tmp_path / "a", stats.tensors(), **metadata, config=json.dumps(stats.config()))
    loaded = ncops.load(tmp_path / "a")
    assert loaded.config() == stats.config() and torch.equal(loaded.sums, stats.sums)
    assert storage.read_origin(tmp_path / "a") is None


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    stats, *_ = make()
    tensors, config = stats.tensors(), json.dumps(stats.config())
    good = {"format": "ncops-stats", "version": 1, "kind": "ClassStatistics", "config": config}

    with pytest.raises(FileNotFoundError, match="no file"):
        ncops.load(path)
    path.write_text("hello")
    with pytest.raises(ValueError, match="not a whole file"):
        ncops.load(path)
    write(path, {"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="not one of ncops statistics"):
        ncops.load(path)
    for change, message in (
        ({"version": 2}, "version '2'"),
        ({"kind": "Other"}, "holds 'Other'"),
        ({"config": "{"}, "not a whole file"),
        ({"config": "{}"}, "damaged"),
        ({"config": config.replace('"num_classes": 7', '"num_classes": 8')}, "damaged: state: counts: expected"),
    ):
        write(path, tensors, **{**good, **change})
        with pytest.raises(ValueError, match=message):
            ncops.load(path)
    document = {"format": "ncops-stats", "version": 2, "kind": "ClassStatistics", "config": stats.config()}
    for change, message in (
        ({"version": 3}, "version '3'"),
        ({"format": "other"}, "not one of ncops statistics"),
        ({"kind": ["ClassStatistics"]}, "is damaged"),
        ({"config": None}, "is damaged"),
    ):
        write(path, tensors, ncops=json.dumps({**document, **change}))
        with pytest.raises(ValueError, match=message):
            ncops.load(path)
    write(path, tensors, ncops="[1")
    with pytest.raises(ValueError, match="not a whole file"):
        ncops.load(path)
    write(path, {**tensors, "extra": torch.zeros(1)}, **good)
    with pytest.raises(ValueError, match="expected the tensors"):
        ncops.load(path)
    with pytest.raises(ValueError):
        ncops.load(tmp_path)


def test_no_flipped_bit_goes_unseen(tmp_path):
    stats, *_ = make()
    whole, flipped = tmp_path / "whole", tmp_path / "flipped"
    stats.save(whole)
    data = whole.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    chosen = random.Random(0)
    for place in [*range(header), *chosen.sample(range(header, len(data)), 500)]:
        changed = bytearray(data)
        changed[place] ^= 1 << chosen.randrange(8)
        flipped.write_bytes(changed)
        try:
            loaded = ncops.load(flipped)
        except ValueError as error:
            assert "flipped" in str(error)
            continue
        assert place < header, f"byte {place} of the data"  # a blank of the header's padding, for one
        assert loaded.config() == stats.config()
        for name, tensor in stats.tensors().items():
            assert torch.equal(getattr(loaded, name), tensor), (place, name)


def test_a_flipped_bit_that_makes_another_setting_is_seen(tmp_path):
    path = tmp_path / "a"
    make()[0].save(path)
    parts = path.read_bytes().split(rb"\"ignore_index\": -1")
    assert len(parts) == 2
    path.write_bytes(rb"\"ignore_index\": -3".join(parts))
    with pytest.raises(ValueError, match="damaged: its content is not what was written"):
        ncops.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="path: expected a file, got .*pipe"):
        ncops.load(tmp_path / "pipe")


def test_writers_of_one_name_do_not_sweep_each_other_away(tmp_path):
    target = tmp_path / "a"
    with storage.replacing(target) as first:
        with storage.replacing(target) as second:
            assert os.path.dirname(first) != os.path.dirname(second)
            open(second, "w").write("2")
        assert target.read_text() == "2"
        open(first, "w").write("1")
    assert target.read_text() == "1" and os.listdir(tmp_path) == ["a"]
