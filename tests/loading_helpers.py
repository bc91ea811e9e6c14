"""What the tests of the loaders share: random buffers of every kind, and a look at batches sample by sample."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from hypothesis import strategies as st

from gym_replay import ConcatReplayBuffer, Field, ReplayBuffer

FIELDS = {
    "observation": Field("float32", (2,), state=True),
    "seen": Field("int16", state=True, ragged=True),
    "action": "int",
    "reward": "float64",
    "terminated": "bool",
    "words": Field("uint8", ragged=True),
}
META = {"task": "int", "name": "str"}
RAGGED = ("seen", "words")


def make_episode(number, length, *, final=True):
    """Values from which episode, step and field can be told."""
    rows = length + final
    steps = np.arange(rows)
    base = 100 * number + steps
    return {
        "observation": np.stack((base + 0.25, -base - 0.5), axis=1).astype(np.float32),
        "seen": [np.arange(t % 3) + base[t] for t in range(rows)],
        "action": 3 * base[:length] + 1,
        "reward": 1 + base[:length] / 7,
        "terminated": (np.arange(length) == length - 1) & (number % 2 == 0),
        "words": [np.arange((number + t) % 4) + 1 + t for t in range(length)],
        "task": number % 3,
        "name": f"name {number % 4}",
    }


@st.composite
def worlds(draw):
    """How to make a buffer: what :func:`world` takes."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    finals = draw(st.one_of(st.just([True] * 8), st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    return {
        "lengths": lengths,
        "finals": finals[: len(lengths)],
        "kind": draw(st.sampled_from(["plain", "circular", "deleted", "concatenated"])),
        "encoded": draw(st.booleans()),
    }


@contextmanager
def world(folder, lengths, finals=None, kind="plain", fields=FIELDS, *, encoded=False):
    """A buffer, or a concatenation of two, and its live episodes; observations are stored with a codec or without."""
    if encoded:
        fields = {**fields, "observation": replace(fields["observation"], codec="zstd")}
    finals = [True] * len(lengths) if finals is None else finals
    made = [
        {name: value for name, value in make_episode(k, n, final=final).items() if name in fields or name in META}
        for k, (n, final) in enumerate(zip(lengths, finals, strict=True))
    ]
    options = {"fields": fields, "meta_fields": META}
    if kind == "concatenated" and len(made) > 1:
        half = len(made) // 2
        with ReplayBuffer(folder / "a", **options) as first, ReplayBuffer(folder / "b", **options) as second:
            for number, episode in enumerate(made):
                (first if number < half else second).store_episode(**episode)
            with ConcatReplayBuffer([first, second]) as both:
                yield both, list(both)
        return
    if kind == "circular":
        options |= {"circular": True, "max_episodes": 3, "max_steps": 20}
    with ReplayBuffer(folder / "a", **options) as buffer:
        for episode in made:
            buffer.store_episode(**episode)
        if kind == "deleted" and len(made) > 2:
            buffer.delete([1])
        yield buffer, list(buffer)


def samples_of(loader):
    """Every sample of every batch of an epoch, as a dict of its own."""
    for batch in loader:
        sizes = {len(values) for values in batch.values()}
        assert len(sizes) == 1
        for value in batch.values():
            assert isinstance(value, list) or (value.is_contiguous() and not value.is_inference())
        for k in range(sizes.pop()):
            yield {name: values[k] for name, values in batch.items()}


def by_index(loader):
    """The samples of an epoch by episode and step; each comes once."""
    found = {}
    for sample in samples_of(loader):
        key = tuple(sample.pop("_indices").tolist())
        assert key not in found
        found[key] = sample
    return found


def assert_rows(sample, entry, rows):
    """A ragged entry of a sample holds these rows: one array, or a list of them."""
    values, lens = sample[entry], sample[f"{entry}_lens"]
    if isinstance(rows, np.ndarray):
        values, lens, rows = values[None], lens[None], [rows]
    assert lens.tolist() == [len(row) for row in rows]
    for value, row in zip(values, rows, strict=True):
        np.testing.assert_array_equal(value[: len(row)], row)
        assert not value[len(row) :].any()


def assert_equal(value, expected):
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    expected = np.asarray(expected)
    assert value.shape == expected.shape
    np.testing.assert_array_equal(value, expected.astype(np.float32) if expected.dtype == np.float64 else expected)
