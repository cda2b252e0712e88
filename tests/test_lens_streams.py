"""The way from the last block into the head, in small models that are built to be hard to follow."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ncops.errors import CommandError
from ncops.lm.lens.stream import States, find_stream

DIM, IDS = 8, torch.arange(5)[None]


class Toy(nn.Module):
    """An embedding, what ``run`` makes of it by the modules of ``parts``, and a head."""

    def __init__(self, run, **parts) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, DIM), nn.Linear(DIM, 30, bias=False)
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, use_cache=None):
        return self.head(self.run(self, self.embed(input_ids)))


class Block(nn.Module):
    """h + tanh(A h), whose argument is passed by position or by name, first or second."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.inner, self.in_place = nn.Linear(DIM, DIM), in_place

    def forward(self, *places, hidden=None):
        h = places[-1] if hidden is None else hidden
        added = self.inner(h).tanh()
        return h.add_(added) if self.in_place else h + added


def stack(count: int = 3, **options) -> nn.ModuleList:
    return nn.ModuleList([Block(**options) for _ in range(count)])


def through(blocks, h):
    for block in blocks:
        h = block(h)
    return h


def norm() -> nn.LayerNorm:
    """One whose place shows."""
    made = nn.LayerNorm(DIM)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


def decoded(model: Toy, state: torch.Tensor) -> tuple[str, torch.Tensor]:
    stream = find_stream(model, IDS)
    with torch.no_grad():
        return stream.words, stream.decode(state, state)


STATE = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(0))
WAYS = {
    "a factor alone": (lambda m, h: through(m.blocks, h) / 4, {}, "the state * 0.25", lambda m, h: h / 4),
    "a factor, and nothing": (
        lambda m, h: m.off(2 * through(m.blocks, h)), {"off": nn.Dropout()}, "the state * 2", lambda m, h: 2 * h,
    ),
    "a factor before": (
        lambda m, h: m.last(3 * through(m.blocks, h)), {"last": nn.Linear(DIM, DIM)}, "the state * 3 -> last",
        lambda m, h: m.last(3 * h),
    ),
    "factors behind": (
        lambda m, h: m.b(m.a(through(m.blocks, h)) * 0.5) * 3, {"a": norm(), "b": nn.Linear(DIM, DIM)},
        "a * 0.5 -> b * 3", lambda m, h: m.b(m.a(h) * 0.5) * 3,
    ),
    "nothing changed": (
        lambda m, h: m.off(m.a(m.off(through(m.blocks, h)))), {"a": norm(), "off": nn.Dropout()}, "a",
        lambda m, h: m.a(h),
    ),
    "a norm used twice": (
        lambda m, h: m.a(through(m.blocks, m.a(h))), {"a": norm()}, "a", lambda m, h: m.a(h),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_the_way_is_found_and_other_states_take_it(name):
    run, parts, words, wanted = WAYS[name]
    model = Toy(run, blocks=stack(), **parts).eval()
    told, made = decoded(model, STATE)
    assert told == words
    torch.testing.assert_close(made, wanted(model, STATE).detach())


class Paired(nn.Module):
    """A tail that needs more than the state."""

    def forward(self, h, other):
        return h.flip(-1) + other


class Counting(nn.Module):
    """A tail that is another one each time."""

    times = 0

    def forward(self, h):
        self.times += 1
        return h.flip(-1) + self.times


@pytest.mark.parametrize(
    ("run", "part", "words"),
    [
        (lambda m, h: m.tail(through(m.blocks, h), h), Paired(), "tail does not take a state alone: .*missing"),
        (lambda m, h: m.tail(through(m.blocks, h)), Counting(), "tail makes another input .* off by"),
    ],
)
def test_a_way_that_another_state_cannot_take_is_refused(run, part, words):
    with pytest.raises(CommandError, match=words):
        find_stream(Toy(run, blocks=stack(), tail=part).eval(), IDS)


class Outer(nn.Module):
    """A block that is itself a list of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = stack(2)

    def forward(self, h):
        return through(self.parts, h)


def backwards(model, h):
    return through(reversed(model.blocks), h)


@pytest.mark.parametrize(
    ("run", "lists", "wanted"),
    [
        (lambda m, h: through(m.second, through(m.first, h)), {"first": stack(), "second": stack(2)}, "second"),
        (lambda m, h: through(m.outer, h), {"outer": nn.ModuleList([Outer(), Outer()])}, "outer"),
        (lambda m, h: through(m.blocks, through(m.blocks, h)), {"blocks": stack()}, None),
        (backwards, {"blocks": stack()}, None),
    ],
    ids=["the last of two", "the outer one", "run through twice", "run through backwards"],
)
def test_which_list_holds_the_blocks(run, lists, wanted):
    model = Toy(run, **lists).eval()
    if wanted is None:
        with pytest.raises(CommandError, match="Toy has no list of blocks"):
            find_stream(model, IDS)
    else:
        assert find_stream(model, IDS).blocks == tuple(lists[wanted])


CALLS = {
    "by position": lambda block, h: block(h),
    "by name": lambda block, h: block(hidden=h),
    "behind another": lambda block, h: block(None, h),
}


@pytest.mark.parametrize("in_place", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("call", CALLS)
def test_states_are_what_leaves_each_block(call, in_place):
    """Whatever later blocks write over them."""

    def run(model, h):
        for block in model.blocks:
            h = CALLS[call](block, h)
        return h

    model = Toy(run, blocks=stack(in_place=in_place)).eval()
    x, states = States(find_stream(model, IDS), (0, 1, 2)).run(model, input_ids=IDS)
    with torch.no_grad():
        h = model.embed(IDS)
        for layer, block in enumerate(model.blocks):
            torch.testing.assert_close(states[layer], h)
            h = block(h.clone())
    torch.testing.assert_close(x, h)
