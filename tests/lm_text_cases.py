"""Documents, a tiny model, and the command run on them, for the tests of text."""

from __future__ import annotations

import json

import torch
from test_lm import WORDS, llama, save, sentence

from ncops import cli

EOS = 122
OPTIONS = ("--window", "16", "--min-count", "2", "--batch-size", "3", "--dtype", "float64", "--json")
DOCUMENTS = [
    sentence(0, 150) + "日本 w1 naïve w2\n\n" + sentence(1, 60),
    "w1 w2 🙂 w3",
    sentence(2, 90) + "  w5 \n",
    "w7",
    sentence(3, 77),
]
"""Some end in spaces, have words that are unknown and longer in bytes than in characters, or hold one token."""


def save_tiny(folder):
    """A model in float64, saved with a tokenizer that has an EOS; the folder, and the model."""
    torch.manual_seed(2)
    model = llama()
    save(folder, model)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": WORDS[EOS - 3]}))
    return folder, model.double().eval()


def run(capsys, *arguments) -> dict:
    status = cli.main(["lm", *map(str, arguments)])
    out = capsys.readouterr()
    assert status == 0, out.err
    return json.loads(out.out)


def refused(capsys, *arguments) -> str:
    assert cli.main(["lm", *map(str, arguments)]) == 2
    streams = capsys.readouterr()
    line = streams.err.splitlines()[-1]
    assert streams.out == "" and line.startswith("ncops") and len(line) < 700 and "Traceback" not in streams.err
    return line


def plain(folder, documents=DOCUMENTS) -> list:
    """The documents as files of plain text."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i}.txt" for i in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_bytes(document.encode())
    return paths


def without_facts(report: dict) -> dict:
    return {name: report[name] for name in ("metrics", "coverage", "classes")}
