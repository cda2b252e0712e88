"""A state in one file per rank, such that a job killed while it saves leaves the previous files whole and together."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

NAME = re.compile(r"shard-(\d+)-of-(\d+)-save-(\d+)\.safetensors")


class ShardFiles:
    """The files of one rank in a folder, which the ranks may share or not.

    Every save has a number that all ranks agree on, and the files of the save before are removed only once every rank
    has written its own: at every moment there is a number that all ranks have.

    Args:
        folder: where the files are.
        rank, ranks: this rank and how many there are.

    Raises:
        FileNotFoundError: there is no such folder. ValueError: it holds files of another number of ranks.
    """

    def __init__(self, folder: str | os.PathLike, rank: int, ranks: int) -> None:
        self.folder, self.rank, self.ranks = Path(folder), rank, ranks
        self.saves: set[int] = set()
        if not self.folder.is_dir():
            raise FileNotFoundError(f"folder: no folder {self.folder}")
        for match in filter(None, map(NAME.fullmatch, os.listdir(self.folder))):
            owner, of, save = map(int, match.groups())
            if of != ranks:
                raise ValueError(f"folder: {self.folder} holds the shards of {of} ranks, these are {ranks}")
            if owner == rank:
                self.saves.add(save)

    def path(self, save: int) -> Path:
        return self.folder / f"shard-{self.rank}-of-{self.ranks}-save-{save}.safetensors"

    def keep_only(self, save: int) -> None:
        """Removes this rank's files of all other saves."""
        for other in self.saves - {save}:
            with suppress(FileNotFoundError):
                os.unlink(self.path(other))
        self.saves &= {save}
