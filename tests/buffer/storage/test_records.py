"""Records whose values come again are written ahead: every record is whole all the same, whatever came in between."""

import sys

import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain

from gym_replay import ReplayBuffer, StorageError, check_buffer
from gym_replay.buffer.storage import records
from gym_replay.buffer.storage.columns import ColumnGroup, ColumnWriter


def test_values_that_come_again_and_change_are_all_there(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_AHEAD", 3)
    seeds = [7, 7, 7, 7, 7, 7, 5, 7, 7, 7, 1, 2, 2, 2, 7]
    with make_plain(tmp_path, meta_fields={"seed": "int"}) as buffer:
        for seed in seeds:
            buffer.store_episode(x=[1], seed=seed)
        assert [int(episode.meta["seed"]) for episode in buffer] == seeds
    assert np.load(tmp_path / "episodes/meta/seed.npy").tolist() == seeds
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.parametrize("at", range(26))
def test_an_interrupt_at_any_line_leaves_nothing_out(tmp_path, at):
    """The record is written again after it, and to the same slot."""
    buffer = make_plain(tmp_path)
    add(buffer, 1)  # so that values come again in the next record
    methods = (records.RecordWriter.write, records.RecordWriter._write_ahead, records.RecordWriter._note_steady)
    codes = [method.__code__ for method in (*methods, ColumnGroup.write)]
    lines = 0

    def interrupt(frame, event, argument):
        nonlocal lines
        if frame.f_code not in codes:
            return interrupt if event == "call" else None
        if event == "line":
            lines += 1
            if lines == 5 + at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return interrupt

    episode = buffer.one_episode()
    episode.__enter__()
    buffer.store(x=5)
    sys.settrace(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            episode.__exit__(None)
    finally:
        sys.settrace(None)
    add(buffer, 1, 1, 1)
    assert contents(buffer)[1] == [5]
    buffer.close()
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert len(buffer) == 5
    assert check_buffer(tmp_path, progress=False).verified


def test_a_refused_write_is_not_taken_for_one_that_was_made(tmp_path, monkeypatch):
    buffer = make_plain(tmp_path)
    add(buffer, 1)

    def refuse(*arguments):
        raise StorageError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(ColumnGroup, "write", refuse)
        patch.setattr(ColumnWriter, "write", refuse)
        with pytest.raises(StorageError):
            add(buffer, 1)
    add(buffer, 1, 1)
    assert len(buffer) == 3
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified
