"""Single cases of damage to ragged fields and strings; ``python -m tests.faults`` tries them all."""

from __future__ import annotations

import pickle
import sys
from contextlib import suppress

import numpy as np
import pytest
from internals import small_sizes

from gym_replay import CorruptBufferError, Field, FieldError, ReplayBuffer, check_buffer

WORDS = Field("uint8", ragged=True)


def put(folder, path, index, value):
    values = np.load(folder / path, mmap_mode="r+")
    values[index] = value
    values.flush()


def test_episodes_without_elements_outlive_damaged_ones(tmp_path):
    """The place of their empty rows is past the end, once the elements before it were given up."""
    with ReplayBuffer(tmp_path, fields={"words": WORDS}) as buffer:
        buffer.store_episode(words=[np.arange(n, dtype=np.uint8) for n in (6, 5, 4)])
        buffer.store_episode(words=[[], []])
    put(tmp_path, "steps/words.spans.npy", (1, 0), 0)
    check_buffer(tmp_path, repair=True, progress=False)
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.store_episode(words=[[1]])
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert [episode["words"].tolist() for episode in buffer] == [[[], []], [[1]]]
        assert buffer.get_all_data()["words"].tolist() == [[[0], [0]], [[1], [0]]]
    assert check_buffer(tmp_path, progress=False).verified


def test_zeros_are_no_string(tmp_path):
    """A page that the disk lost is not taken for empty strings."""
    with ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields={"task": "str"}) as buffer:
        buffer.store_episode(x=[1], task="pick up")
        buffer.store_episode(x=[1])
    put(tmp_path, "strings.npy", slice(None), 0)
    assert [(fault.rule, fault.episode) for fault in check_buffer(tmp_path, progress=False).faults] == [(13, 0)]
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        with pytest.raises(CorruptBufferError, match=r"strings\.npy"):
            _ = buffer.episode(0).meta
        assert buffer.episode(1).meta["task"] == ""


def test_a_string_that_no_reader_takes_is_not_stored(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields={"task": "str"}) as buffer:
        with pytest.raises(FieldError, match=r"field 'task': a string of \d+ bytes, expected \d+ at most"):
            buffer.store_episode(x=[1], task="a" * ((1 << 26) + 1))
        buffer.store_episode(x=[1], task="a")
        assert [episode.meta["task"] for episode in buffer] == ["a"]


def test_ragged_rows_are_pickled_by_value(tmp_path):
    with ReplayBuffer(tmp_path, fields={"words": WORDS}) as buffer:
        buffer.store_episode(words=[[1, 2], [], [3]])
        rows = buffer.episode(0)["words"]
        for each in (rows, rows[1:], rows.copy()):
            assert pickle.loads(pickle.dumps(each)).tolist() == each.tolist()


def test_spans_that_cannot_be_name_their_file(tmp_path):
    with ReplayBuffer(tmp_path, fields={"words": WORDS}) as buffer:
        buffer.store_episode(words=[[1, 2], [], [3]])
    put(tmp_path, "steps/words.spans.npy", (1, 0), -1)
    with (
        ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer,
        pytest.raises(CorruptBufferError, match=r"words\.spans\.npy: no row has its elements at -1"),
    ):
        buffer.episode(0).copy()


@pytest.mark.parametrize("line", range(4, 28, 2))
def test_an_interrupted_early_write_leaves_no_gap(tmp_path, monkeypatch, line):
    """Elements follow one another also where an interrupt has rows written again."""
    small_sizes(monkeypatch, ragged_chunk_rows=4)
    before, lines = sys.gettrace(), []

    def each_line(frame, event, argument):
        lines.append(event)
        if len(lines) == line + 1:
            raise KeyboardInterrupt
        return each_line

    def trace(frame, event, argument):
        return each_line if "early" in frame.f_code.co_name and len(lines) <= line else None

    def store(buffer, t):
        sys.settrace(trace if t >= 8 else before)  # then some rows are written
        try:
            buffer.store(words=[t] * 3, other=[t])
        finally:
            sys.settrace(before)

    with ReplayBuffer(tmp_path, fields={"words": WORDS, "other": WORDS}) as buffer:
        with buffer.one_episode():
            for t in range(30):
                with suppress(KeyboardInterrupt):
                    store(buffer, t)
                    continue
                store(buffer, t)
        assert len(lines) > line
        assert buffer.episode(0)["words"].tolist() == [[t] * 3 for t in range(30)]
        assert buffer.episode(0)["other"].tolist() == [[t] for t in range(30)]
    assert check_buffer(tmp_path, progress=False).verified
