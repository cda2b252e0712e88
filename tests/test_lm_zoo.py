"""`ncops lm` on tiny random models of every causal architecture, against the logits that each makes itself, in float64.

A sample of them; ``--zoo`` takes all, three minutes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zoo
from test_lm import save_tokenizer, sentence, transformers

from ncops import lm
from ncops.errors import CommandError
from ncops.lm.measure import read_windows

WINDOW = 24
TEXT = sentence(7, WINDOW * 15 + 5)


def pytest_generate_tests(metafunc):
    if "kind" in metafunc.fixturenames:
        every = [kind for kind in zoo.CAUSAL if kind not in zoo.NOT_BUILT]
        metafunc.parametrize("kind", every if metafunc.config.getoption("--zoo") else zoo.SAMPLE)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny products take longest to wait for a second thread, on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def own(folder: Path, pieces: list[list[int]], dtype: torch.dtype) -> tuple[list[float], torch.dtype]:
    """Mean NLL, entropy and top-1 accuracy of full logits, a window at a time, and the dtype that these come in."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    eager = {"experts_implementation": "eager"}
    model = getattr(transformers, name).from_pretrained(folder, dtype=dtype, **eager).eval()
    columns = []
    for ids in pieces:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        log_p = logits.double().log_softmax(-1)
        y = torch.tensor(ids[1:])
        nll = -log_p[torch.arange(len(y)), y]
        columns.append(torch.stack([nll, -(log_p.exp() * log_p).sum(-1), (logits.argmax(-1) == y).double()]))
    return torch.cat(columns, 1).mean(1).tolist(), logits.dtype


def test_numbers_are_those_of_its_own_logits(kind, tmp_path):
    model = zoo.build(kind)
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path)
    dtype = torch.float32 if kind in zoo.SINGLE else torch.float64
    loaded = lm.load(lm.find_source(tmp_path), dtype=str(dtype).removeprefix("torch."))
    loaded.tokenizer = tokenizer  # of some types transformers makes one that knows bytes only
    if kind in zoo.REFUSED:
        with pytest.raises(CommandError, match=zoo.REFUSED[kind]):
            lm.measure(loaded, [[TEXT]], window=WINDOW, min_count=2, progress=False)
        return
    found = lm.measure(loaded, [[TEXT]], window=WINDOW, min_count=2, progress=False)
    windows = read_windows(loaded, [[TEXT]], window=WINDOW)
    held_out = [windows[i] for i in windows.split()[1]]
    wanted, of_logits = own(tmp_path, held_out, dtype)
    near = {"rel": 1e-9 if of_logits == torch.float64 else 1e-5, "abs": 0}
    assert [found.report["nll"], found.report["entropy"]] == pytest.approx(wanted[:2], **near)
    assert found.report["accuracy"] == pytest.approx(wanted[2], rel=1e-12)
    run = found.details["run"]
    assert (run["logit_scale"], run["soft_cap"]) == zoo.MADE.get(kind, (1.0, None))
    assert run["stated_nowhere"] is None


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_other_models_are_refused(name, tmp_path):
    kind = getattr(transformers, name).config_class.model_type
    one = {} if "Bert" not in name else {"is_decoder": False}
    zoo.build(kind, name, **one).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(CommandError, match=zoo.OTHERS[name]) as refused:
        lm.measure(lm.load(lm.find_source(tmp_path)), [[TEXT]], window=WINDOW, progress=False)
    assert len(str(refused.value).replace(str(tmp_path), "")) < 200


def test_the_zoo_is_all_there_is():
    assert len(zoo.CAUSAL) - len(zoo.NOT_BUILT) - len(zoo.REFUSED) >= 40
    assert not set(zoo.SAMPLE) & (zoo.NOT_BUILT.keys() | zoo.REFUSED.keys())
