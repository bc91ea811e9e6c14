"""The records of episodes: each is whole, whatever came in between."""

import sys

import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain

from gym_replay import Field, FieldError, ReplayBuffer, StorageError, check_buffer


def test_values_that_come_again_and_change_are_all_there(tmp_path):
    seeds = [7, 7, 7, 7, 7, 7, 5, 7, 7, 7, 1, 2, 2, 2, 7]
    with make_plain(tmp_path, meta_fields={"seed": "int"}) as buffer:
        for seed in seeds:
            buffer.store_episode(x=[1], seed=seed)
        assert [int(episode.meta["seed"]) for episode in buffer] == seeds
    assert np.load(tmp_path / "episodes.npy", mmap_mode="r")["seed"].tolist() == seeds
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.parametrize("at", range(15))
def test_an_interrupt_at_any_line_leaves_nothing_out(tmp_path, at):
    """The record is written again after it, and to the same slot."""
    buffer = make_plain(tmp_path)
    add(buffer, 1)
    methods, files = ("encode_one", "_write_records", "write"), ("records.py", "open_files.py", "columns.py")
    lines = 0

    def interrupt(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_name not in methods or not frame.f_code.co_filename.endswith(files):
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
        raise OSError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", refuse)
        with pytest.raises(StorageError):
            add(buffer, 1)
    add(buffer, 1, 1)
    assert len(buffer) == 3
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


def test_meta_fields_may_have_the_names_of_columns_and_any_script(tmp_path):
    names = {"id": 1, "start": 2, "length": 3, "flags": 4, "crc": 5, "reserved": 6, "é": 7, "回报": 8, "a.b": 9}
    fields = {name: Field("int32", ()) for name in names}
    with ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields=fields) as buffer:
        buffer.store_episode(x=[1, 2], **names)
        buffer.update(0, start=-2)
        assert {name: int(value) for name, value in buffer.episode(0).meta.items()} == {**names, "start": -2}
    table = np.load(tmp_path / "episodes.npy", mmap_mode="r", allow_pickle=False)
    assert (table["start"][0], table["length"][0]) == (0, 2)
    assert (table["meta/start"][0], table["回报"][0], table["a.b"][0]) == (-2, 8, 9)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert int(buffer.episode(0).meta["回报"]) == 8
    assert check_buffer(tmp_path, progress=False).verified


def test_more_fields_than_numpy_would_load_are_refused_with_the_remedy(tmp_path):
    many = {f"a_name_of_some_length_{number}": "float" for number in range(400)}
    for arguments in ({"fields": {"x": "int"}, "meta_fields": many}, {"fields": many}):
        with pytest.raises(
            FieldError, match=r"400 (meta )?fields, with their names, take .* store several values as one"
        ):
            ReplayBuffer(tmp_path / "buffer", **arguments)
        assert not (tmp_path / "buffer").exists()
    few = dict(list(many.items())[:200])
    with ReplayBuffer(tmp_path / "buffer", fields=few) as buffer:
        buffer.store_episode(**{name: [1.0] for name in few})
    assert np.load(tmp_path / "buffer/checksums.npy", mmap_mode="r").dtype.names == tuple(few)
    assert check_buffer(tmp_path / "buffer", progress=False).verified


def test_deleting_several_episodes_is_one_change(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 1, 2, 3, 4, 5, 6)
        before = ReplayBuffer.from_folder(tmp_path, read_only=True)
        buffer.delete([0, 2, 5])
        assert [episode.id for episode in buffer] == [1, 3, 4]
        assert len(before) == 6
        before.refresh()
        assert [episode.id for episode in before] == [1, 3, 4]
        buffer.delete(1)
        buffer.delete([])
        assert [episode.id for episode in buffer] == [1, 4]
        before.refresh()
        assert [episode.id for episode in before] == [1, 4]
        before.close()
    table = np.load(tmp_path / "episodes.npy", mmap_mode="r")
    assert (table["flags"] & 4 != 0).tolist() == [True, False, True, True, False, True]
    assert check_buffer(tmp_path, progress=False).verified
