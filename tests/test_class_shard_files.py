"""Classes spread over real processes, on disk: what is loaded is what was saved, by all ranks at once."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from class_shard_cases import D, batch, bits, check_same_bits, one_and_shards, same

import ncops
from ncops.distributed import ShardedClassStatistics, class_shards
from ncops.distributed.shard_files import ShardFiles
from ncops.stats.files import read_state, save_state


def store(rank, ranks, classes, folder, own_folders):
    folder = Path(folder) / str(rank) if own_folders else Path(folder)
    _, shards = one_and_shards(rank, ranks, classes, torch.bfloat16, scatter=True, nonfinite="skip", ignore_index=-100)
    ShardedClassStatistics(classes, D).save(folder)
    with mock.patch.object(ShardFiles, "keep_only"):  # killed before the save before is removed
        shards.save(folder)
    loaded = ShardedClassStatistics.load(folder)
    assert same(bits(shards), bits(loaded)) and loaded.updates == 3 and loaded.classes == shards.classes
    assert (loaded.input_dtype, loaded._config()) == (torch.bfloat16, shards._config())
    more = batch(rank, ranks, 7, classes, torch.bfloat16)
    shards.update(*more)
    loaded.update(*more)
    assert same(bits(shards), bits(loaded)), "goes on with the same bits"
    check_same_bits(loaded.gather(), shards.gather())

    def no_space(*_):
        raise OSError(28, "No space left on device")

    write = no_space if rank == 0 else class_shards.save_state
    with mock.patch.object(class_shards, "save_state", write):
        with pytest.raises(RuntimeError, match=r"save: rank 0: OSError: \[Errno 28\] No space left on device"):
            shards.save(folder)
    assert ShardedClassStatistics.load(folder).updates == 3, "the save before is still there"
    shards.save(folder)
    assert ShardedClassStatistics.load(folder).updates == 4
    dist.barrier()
    return sorted(os.listdir(folder))


@pytest.mark.parametrize(("ranks", "classes", "own_folders"), [(2, 7, False), (2, 1, True)])
def test_save_and_load(on_ranks, tmp_path, ranks, classes, own_folders):
    listed = on_ranks(ranks, store, ranks, classes, str(tmp_path / "made"), own_folders)
    names = [f"shard-{r}-of-{ranks}-save-4.safetensors" for r in range(ranks)]
    assert listed == ([[name] for name in names] if own_folders else [names] * ranks)


def save_one(rank, ranks, classes, folder):
    one_and_shards(rank, ranks, classes, torch.float32, steps=1)[1].save(folder)


def refused_loads(rank, folders):
    heard = {}
    for name, folder in folders.items():
        with pytest.raises(ValueError) as error:
            ShardedClassStatistics.load(folder)
        heard[name] = str(error.value)
    return heard


def test_files_that_do_not_fit_are_refused(on_ranks, tmp_path):
    folders = {n: tmp_path / n for n in ("others", "missing", "lost", "swapped", "mixed", "cut", "foreign", "negative")}
    names = [f"shard-{r}-of-2-save-1.safetensors" for r in range(2)]
    for name, folder in folders.items():
        if name not in ("others", "missing"):
            folder.mkdir()
    folders["others"].mkdir()
    (folders["others"] / "shard-0-of-3-save-1.safetensors").touch()
    on_ranks(2, save_one, 2, 7, str(tmp_path / "whole"))
    shards = [(tmp_path / "whole" / name).read_bytes() for name in names]
    for name, contents in {
        "lost": {names[0]: shards[0]},
        "swapped": {names[0]: shards[1], names[1]: shards[0]},
        "mixed": {names[0]: shards[0], "shard-1-of-2-save-2.safetensors": shards[1]},
        "cut": {names[0]: shards[0], names[1]: shards[1][:-1]},
        "foreign": {names[0]: shards[0]},
        "negative": {names[0]: shards[0]},
    }.items():
        for file, content in contents.items():
            (folders[name] / file).write_bytes(content)
    ncops.ClassStatistics(3, D).save(folders["foreign"] / names[1])
    kind, config, tensors = read_state(tmp_path / "whole" / names[1])
    save_state(folders["negative"] / names[1], kind, config, {**tensors, "counts": -tensors["counts"]})

    first, second = on_ranks(2, refused_loads, {name: str(folder) for name, folder in folders.items()})
    assert first == second
    assert first["others"] == "; ".join(
        f"load: rank {r}: folder: {folders['others']} holds the shards of 3 ranks, these are 2" for r in range(2)
    )
    assert "load: rank 0: folder: no folder" in first["missing"]
    assert first["lost"] == f"load: rank 1: folder: {folders['lost']} holds no shard of rank 1"
    assert "it holds the classes [4, 7] of 2 ranks, rank 0 of 2 keeps [0, 4]" in first["swapped"]
    assert "the ranks' shards are of different saves" in first["mixed"]
    assert first["cut"].startswith("load: rank 1: path:") and "is not a whole file" in first["cut"]
    assert first["foreign"].endswith("holds 'ClassStatistics', expected ClassShard")
    assert "does not fit: state: counts: expected numbers of rows, got -" in first["negative"]
    with pytest.raises(ValueError, match="holds 'ClassShard', expected one of ClassStatistics"):
        ncops.load(tmp_path / "whole" / names[0])


def save_among_others(rank, folder):
    with pytest.raises(ValueError, match="rank 0: folder: .* holds the shards of 3 ranks, these are 2; save: rank 1"):
        ShardedClassStatistics(3, D).save(folder)


def test_the_files_of_a_rank(tmp_path):
    for rank, save in ((0, 1), (0, 2), (1, 2), (1, 3)):
        ShardFiles(tmp_path, rank, 2).path(save).write_bytes(b"")
    (tmp_path / "shard-0-of-2-save-9.safetensors.tmp").write_bytes(b"")
    first, second = ShardFiles(tmp_path, 0, 2), ShardFiles(tmp_path, 1, 2)
    assert first.saves == {1, 2} and second.saves == {2, 3}
    second.keep_only(2)
    assert second.saves == ShardFiles(tmp_path, 1, 2).saves == {2}
    assert first.saves == ShardFiles(tmp_path, 0, 2).saves == {1, 2}
    for ranks in (1, 3):
        with pytest.raises(ValueError, match=f"holds the shards of 2 ranks, these are {ranks}"):
            ShardFiles(tmp_path, 0, ranks)


def test_save_leaves_the_shards_of_other_ranks_alone(on_ranks, tmp_path):
    (tmp_path / "shard-1-of-3-save-4.safetensors").write_bytes(b"of others")
    on_ranks(2, save_among_others, str(tmp_path))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"of others"]
