"""`ncops measure` on files that are damaged, or made to do harm: one line, exit status 2, nothing run or allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_cli import error, run

from ncops import cli
from ncops.stats import npz

X, Y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 4
GOOD = {"features": X, "labels": Y}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(descr: str, shape: str, data: bytes = b"", order: str = "False") -> bytes:
    """A member whose header says so, whatever follows."""
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode() + b" \n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def write_zip(path, members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


FEATURES = {
    "huge": (with_header("'<f8'", "(1099511627776, 4096)", X.tobytes()), "declares 36028797018963968 bytes"),
    "huger than 64 bits": (with_header("'<f8'", "(18446744073709551617, 4096)"), "its header declares"),
    "negative": (with_header("'<f8'", "(-40, -3)", X.tobytes()), "its header declares"),
    "cut": (npy(X)[:-8], "its header declares 960 bytes"),
    "longer": (npy(X) + b"12345678", "its header declares 960 bytes"),
    "object": (npy(X.astype(object)), "without pickle"),
    "object header alone": (with_header("'|O'", "(40, 3)", b"cos\nsystem\n"), "without pickle"),
    "string": (npy(X.astype(str)), "expected numbers of at most 64 bits, got <U"),
    "bytes": (npy(X.astype("S8")), "expected numbers"),
    "dates": (npy(Y[:, None].astype("datetime64[s]")), "expected numbers of at most 64 bits, got datetime64[s]"),
    "records": (npy(np.zeros(40, [("a", "f8"), ("b", "f8")])), "expected numbers"),
    "complex": (npy(X + 0j), "expected numbers of at most 64 bits, got complex128"),
    "long double": (npy(X.astype(np.longdouble)), "expected numbers of at most 64 bits, got float128"),
    "no array": (b"hello", "it is no array"),
    "empty": (b"", "it is no array"),
    "pickle": (pickle.dumps(X), "it is no array"),
    "code for a header": (with_header("__import__('os').mkdir('run')", "(40, 3)"), "features cannot be read"),
    "deep header": (with_header("[" * 3000 + "]" * 3000, "(40, 3)"), "features cannot be read"),
    "header of 60 kB": (with_header("'<f8'", "(40, 3)" + " " * 60000), "features cannot be read"),
    "version 9": (b"\x93NUMPY\x09\x00" + npy(X)[8:], "features cannot be read"),
    "0-D": (npy(np.float64(3)), "expected features (N, D) and labels (N)"),
    "3-D": (npy(X[None]), "expected features (N, D) and labels (N)"),
    "integers": (npy(X.astype(int)), "features: expected float32, float64, bfloat16 or float16, got int64"),
    "booleans": (npy(X > 0), "features: expected float32"),
    "no columns": (npy(X[:, :0]), "dim: expected"),
}
LABELS = {
    "2^40": (npy(np.where(Y == 3, 2**40, Y)), "statistics of 1099511627777 classes"),
    "2^63 - 1": (npy(np.where(Y == 3, 2**63 - 1, Y)), "statistics of 9223372036854775808 classes"),
    "unsigned ignore_index": (npy(np.where(Y == 3, 2**64 - 100, Y.astype(np.uint64))), "expected integers below 2^63"),
    "one-hot": (npy(np.eye(4)[Y]), "expected features (N, D) and labels (N)"),
    "column": (npy(Y[:, None]), "expected features (N, D) and labels (N)"),
    "strings": (npy(Y.astype(str)), "labels cannot be read: expected numbers"),
    "booleans": (npy(Y > 1), "labels: expected integers, got bool"),
    "0-D": (npy(np.int64(3)), "expected features (N, D) and labels (N)"),
}


@pytest.fixture
def bounded_memory(monkeypatch):
    """Whatever is declared, a file of a few kilobytes takes less than 512 MB of addresses."""
    pages = int(open("/proc/self/statm").read().split()[0]) if os.path.exists("/proc/self/statm") else None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (512 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FEATURES)
def test_features_that_are_none(tmp_path, capsys, monkeypatch, bounded_memory, name):
    monkeypatch.chdir(tmp_path)
    member, message = FEATURES[name]
    write_zip(tmp_path / "f.npz", {"features": member, "labels": npy(Y)})
    assert message in error(capsys, "measure", tmp_path / "f.npz")
    assert os.listdir(tmp_path) == ["f.npz"], "nothing of the file is executed"


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_none(tmp_path, capsys, bounded_memory, name):
    member, message = LABELS[name]
    write_zip(tmp_path / "f.npz", {"features": npy(X), "labels": member})
    assert message in error(capsys, "measure", tmp_path / "f.npz")


@pytest.mark.parametrize("kind", ("npz", "safetensors"))
@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"bias": np.float64(3)}, "bias: expected (C), got ()"),
        ({"bias": np.zeros((4, 1))}, "bias: expected (C), got (4, 1)"),
        ({"bias": np.zeros(5)}, "bias: expected (C) = (4,), got (5,)"),
        ({"bias": np.zeros(4, np.complex64)}, "bias"),
        ({"weight": np.float64(3)}, "weight: expected (C, D), got ()"),
        ({"weight": np.zeros((4, 3, 1))}, "weight: expected (C, D), got (4, 3, 1)"),
        ({"weight": np.zeros((4, 3), bool)}, "weight: expected real numbers, got bool"),
        ({"weight": np.zeros((0, 3))}, "weight: expected at least one class, got (0, 3)"),
    ],
)
def test_classifiers_that_are_none(tmp_path, capsys, kind, head, message):
    arrays = {**GOOD, "weight": np.zeros((4, 3)), **head}
    if kind == "npz":
        np.savez(tmp_path / "f.npz", **arrays)
    else:
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
        save_file(tensors, tmp_path / "f.safetensors")
    assert message in error(capsys, "measure", tmp_path / f"f.{kind}")


def test_other_byte_orders_and_unsigned_labels_are_read(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", **GOOD)
    np.savez(tmp_path / "b.npz", features=X.astype(">f8"), labels=Y.astype(">u2"))
    np.savez(tmp_path / "c.npz", features=np.asfortranarray(X), labels=Y.astype(np.uint64))
    pages = [json.loads(run(capsys, "measure", tmp_path / f"{n}.npz", "--json").out)["metrics"] for n in "abc"]
    assert pages[0] == pages[1] == pages[2]


@pytest.mark.parametrize("compressed", (False, True))
def test_no_flipped_bit_of_an_archive_goes_unseen(tmp_path, capsys, compressed):
    (np.savez_compressed if compressed else np.savez)(tmp_path / "whole.npz", **GOOD)
    want = json.loads(run(capsys, "measure", tmp_path / "whole.npz", "--json").out)["metrics"]
    data = (tmp_path / "whole.npz").read_bytes()
    chosen = random.Random(0)
    for place in chosen.sample(range(len(data)), 250):
        changed = bytearray(data)
        changed[place] ^= 1 << chosen.randrange(8)
        (tmp_path / "f.npz").write_bytes(changed)
        status, out = cli.main(["measure", str(tmp_path / "f.npz"), "--json"]), capsys.readouterr()
        if status == 0:  # a time stamp, for one
            assert json.loads(out.out)["metrics"] == want, place
        else:
            assert status == 2 and out.out == "" and out.err.count("\n") == 1, place


def test_bombs(tmp_path, capsys, monkeypatch):
    zeros = npy(np.zeros((1 << 20, 8)))  # 64 MB in 64 kB
    write_zip(tmp_path / "f.npz", {"features": zeros, "labels": npy(np.zeros(1 << 20, int))}, zipfile.ZIP_DEFLATED)
    run(capsys, "measure", tmp_path / "f.npz", "--json")
    monkeypatch.setattr(npz, "BOMB_BYTES", 32 << 20)
    assert "0.1 GB are packed in 0.1 MB" in error(capsys, "measure", tmp_path / "f.npz")
    monkeypatch.setattr(npz, "available", lambda: 1 << 20)
    np.savez(tmp_path / "g.npz", features=np.random.randn(1 << 18, 1), labels=np.zeros(1 << 18, int))
    assert "it takes 0.0 GB, 0.0 GB are free" in error(capsys, "measure", tmp_path / "g.npz")


def test_an_archive_that_lies_about_its_sizes(tmp_path, capsys, bounded_memory):
    """Directory and header agree on 8 TB that are not there."""
    member = with_header("'<f8'", "(1099511627776, 1)", b"1" * 64)
    write_zip(tmp_path / "f.npz", {"features": member, "labels": npy(Y)})
    data = bytearray((tmp_path / "f.npz").read_bytes())
    big = struct.pack("<I", 0xFFFFFFF0)
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = big + big
    (tmp_path / "f.npz").write_bytes(data)
    assert "declares 4294967280 bytes of a file of" in error(capsys, "measure", tmp_path / "f.npz")


def test_archives_of_other_kinds(tmp_path, capsys):
    path = tmp_path / "f.npz"
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for array in (X, X + 1):
            archive.writestr("features.npy", npy(array))
        archive.writestr("labels.npy", npy(Y))
    assert "two members of one name" in error(capsys, "measure", path)
    for content in (b"", npy(X), pickle.dumps(GOOD), b"PK\x05\x06" + b"\0" * 17):
        path.write_bytes(content)
        assert "is not a readable .npz file" in error(capsys, "measure", path)
    np.savez(path, **GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # encrypted
    data[data.index(b"PK\x03\x04") + 6] |= 1
    path.write_bytes(data)
    assert "features cannot be read" in error(capsys, "measure", path)


@pytest.mark.parametrize("suffix", ("npz", "safetensors", "pt", "pth", "pkl"))
def test_pickles_are_not_executed(tmp_path, capsys, monkeypatch, suffix):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for save in (torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))):
        save({"features": Payload()}, tmp_path / f"f.{suffix}")
        assert "f." in error(capsys, "measure", tmp_path / f"f.{suffix}")
    assert not (tmp_path / "executed").exists()


def hostile_safetensors():
    def file(header: bytes, data: bytes = X.tobytes()) -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    def entry(dtype="F64", shape=(40, 3), offsets=(0, 960), name="features") -> bytes:
        return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()

    yield file(b"[" * 5000)
    yield file(b"null")
    yield file(b"{}")
    yield struct.pack("<Q", 2**63) + b"{}"
    yield file(entry(shape=(2**40, 4096)))
    yield file(entry(shape=(2**63, 4096), offsets=(0, 960)))
    yield file(entry(offsets=(0, 2**50)))
    yield file(entry(offsets=(960, 0)))
    yield file(entry(shape=(-40, -3)))
    yield file(entry(dtype="O"))
    yield file(entry(dtype="F8_E4M3", shape=(40, 24)))
    yield file(entry(dtype="F4", shape=(40, 48)))
    yield file(entry(dtype="C64", shape=(40, 3)))
    yield file(entry(dtype="F64", shape=()), b"12345678")


def test_hostile_safetensors(tmp_path, capsys, bounded_memory):
    for content in hostile_safetensors():
        (tmp_path / "f.safetensors").write_bytes(content)
        assert "f.safetensors" in error(capsys, "measure", tmp_path / "f.safetensors")
    for dtype in (torch.float8_e4m3fn, torch.complex64, torch.bool, torch.float64):
        tensors = {"features": torch.from_numpy(X), "labels": torch.from_numpy(Y).to(dtype)}
        save_file(tensors, tmp_path / "g.safetensors")
        assert "g.safetensors: labels: expected integers" in error(capsys, "measure", tmp_path / "g.safetensors")
        if dtype != torch.float64:
            tensors = {"features": torch.from_numpy(X).to(dtype), "labels": torch.from_numpy(Y)}
            save_file(tensors, tmp_path / "h.safetensors")
            assert "h.safetensors: features: expected float32" in error(capsys, "measure", tmp_path / "h.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes")
def test_a_name_that_is_not_utf_8_is_refused_before_the_work(tmp_path):
    path = os.fsencode(tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", **GOOD)
    os.rename(path, os.fsencode(tmp_path) + b"/f\xff.npz")
    command = [sys.executable, "-m", "ncops", "measure", os.fsencode(tmp_path) + b"/f\xff.npz", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "expected names in UTF-8, got '" in done.stderr and r"f\udcff.npz" in done.stderr
