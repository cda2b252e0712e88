"""Ctrl-C at every line of an update, a merge or a reset: the statistics are then those of before it, or of after it."""

from __future__ import annotations

import copy
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from test_public_classes import content

import ncops
from ncops import stats

FOLDER = str(Path(stats.__file__).parent)
C, D = 6, 5
pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread alone"
)


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (60,), generator=generator)
    return torch.randn(60, D, generator=generator) + 50 * labels[:, None], labels


def classes(*seeds: int, first: float = 0.0) -> ncops.ClassStatistics:
    made = ncops.ClassStatistics(C, D, scatter=True, nonfinite="skip")
    if first:  # outliers come first, so that the next update moves anchors
        x, y = data(99)
        made.update(x[:C] + first, torch.arange(C))
    for seed in seeds:
        made.update(*data(seed))
    return made


def decided(*seeds: int) -> ncops.DecisionStatistics:
    made = ncops.DecisionStatistics(classes(7).compute(), torch.randn(C, D, generator=torch.Generator().manual_seed(1)))
    for seed in seeds:
        made.update(*data(seed))
    return made


CASES = {
    "first update": (classes, lambda s: s.update(*data(1))),
    "update": (lambda: classes(1), lambda s: s.update(*data(2))),
    "update that moves anchors": (lambda: classes(first=1e3), lambda s: s.update(*data(2))),
    "merge": (lambda: classes(1), lambda s: s.merge(classes(2))),
    "merge into nothing": (classes, lambda s: s.merge(classes(2))),
    "reset": (lambda: classes(1), lambda s: s.reset()),
    "load": (lambda: classes(1), lambda s: s.load_state_dict(classes(2).state_dict())),
    "decisions update": (lambda: decided(1), lambda s: s.update(*data(2))),
    "decisions merge": (lambda: decided(1), lambda s: s.merge(decided(2))),
}


def interrupted_at(line: int, act) -> bool:
    """Runs ``act`` with SIGINT at the given line of ours, counted as they run; whether it came so far."""
    left = line

    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            if left == 0:
                signal.raise_signal(signal.SIGINT)
            left -= 1
        return trace

    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return left < 0


@pytest.mark.parametrize("case", CASES)
def test_an_interrupt_at_every_line(case):
    make, act = CASES[case]
    before, done = content(make()), make()
    act(done)
    after, line, torn = content(done), 0, []
    given = copy.deepcopy(make())
    while True:
        statistics = copy.deepcopy(given)
        came = interrupted_at(line, partial(act, statistics))
        if content(statistics) not in (before, after):
            torn.append(line)
        if not came:
            break
        line += 1
    assert line > 5 and not torn


def test_the_interrupt_is_not_lost():
    from ncops.stats.signals import uninterrupted

    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached = True
    assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
