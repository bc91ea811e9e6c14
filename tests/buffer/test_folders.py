"""ReplayBuffer, the folder under a writer: deleted, moved, replaced, and its lock deleted."""

import gc
import json
import os
import shutil

import numpy as np
import pytest
from buffer_helpers import WRITE_ONE, add, contents, files_of, make_plain, run_script
from internals import small_sizes

from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    ConfigMismatchError,
    ReplayBuffer,
    StorageError,
    check_buffer,
)


def step_by_step(buffer):
    with buffer.one_episode():
        for t in range(9):  # longer than what is kept in memory
            buffer.store(x=t)


def in_a_block(buffer):
    with buffer.batched_episode(2):
        buffer.store_batch(x=[1, 2])


CHANGES = {
    "store_episode": lambda buffer: buffer.store_episode(x=[1]),
    "one_episode": step_by_step,
    "batched_episode": in_a_block,
    "update": lambda buffer: buffer.update([0], x=[[5, 6]]),
    "add_field": lambda buffer: buffer.add_field("new", "float"),
    "delete": lambda buffer: buffer.delete([0]),
    "clear": lambda buffer: buffer.clear(),
    "flush": lambda buffer: buffer.flush(),
    "put_file": lambda buffer: buffer.put_file("notes.json", b"{}"),
}


def delete(folder):
    shutil.rmtree(folder)


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace(folder):
    move(folder)
    with make_plain(folder) as other:
        add(other, 4, 5)


def replace_by_a_copy(folder):
    shutil.copytree(folder, folder.with_name("copy"))
    move(folder)
    folder.with_name("copy").rename(folder)


def replace_by_a_file(folder):
    move(folder)
    folder.write_text("mine")


def delete_lock(folder):
    (folder / "writer.lock").unlink()


def replace_lock(folder):
    (folder / "writer.lock").rename(folder / "old.lock")
    (folder / "writer.lock").write_text("1\n")


HARMS = {
    "deleted": (delete, BufferNotFoundError, "deleted, moved away"),
    "moved": (move, BufferNotFoundError, "deleted, moved away"),
    "replaced": (replace, ConfigMismatchError, "another folder was put in its place"),
    "replaced by a copy": (replace_by_a_copy, ConfigMismatchError, "another folder was put in its place"),
    "replaced by a file": (replace_by_a_file, ConfigMismatchError, "another folder was put in its place"),
    "lock deleted": (delete_lock, BufferLockedError, r"writer\.lock was deleted or replaced"),
    "lock replaced": (replace_lock, BufferLockedError, r"writer\.lock was deleted or replaced"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(("harm", "error", "message"), HARMS.values(), ids=HARMS)
def test_a_change_notices_and_changes_nothing(tmp_path, monkeypatch, harm, error, message, change):
    small_sizes(monkeypatch, chunk_rows=2)
    folder = tmp_path / "data"
    circular = harm in (move, replace_by_a_copy)
    buffer = make_plain(folder, circular=circular, max_episodes=9)
    add(buffer, 2, 3)
    harm(folder)
    before = files_of(tmp_path)
    with pytest.raises(error, match=message) as caught:
        change(buffer)
    assert str(folder) in str(caught.value)
    assert files_of(tmp_path) == before
    with pytest.raises(error, match=message):  # not once only
        buffer.store_episode(x=[1])
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("end", ["close", "del"])
@pytest.mark.parametrize("disk", ["sound", "full before"])
@pytest.mark.parametrize("harm", [replace, replace_by_a_copy])
def test_the_end_of_a_moved_buffer_touches_only_its_own_folder(tmp_path, monkeypatch, harm, disk, end):
    folder, moved = tmp_path / "data", tmp_path / "moved"
    buffer = make_plain(folder)
    add(buffer, 2, 3)
    if disk == "full before":
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", refuse(28))
            with pytest.raises(StorageError):
                add(buffer, 1)
    harm(folder)
    before = files_of(folder)
    if end == "close":
        buffer.close()
    del buffer
    gc.collect()
    assert files_of(folder) == before
    with ReplayBuffer.from_folder(moved) as own:
        assert contents(own) == [[0, 1], [100, 101, 102]]
    assert check_buffer(moved, progress=False).verified


def refuse(number):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refused


def test_a_folder_that_is_put_back_is_written_on(tmp_path):
    folder = tmp_path / "data"
    with make_plain(folder) as buffer:
        add(buffer, 2)
        move(folder)
        with pytest.raises(BufferNotFoundError):
            add(buffer, 1, first=1)
        (tmp_path / "moved").rename(folder)
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
    assert check_buffer(folder, progress=False).verified


def test_closing_what_was_deleted_says_so_and_lets_go(tmp_path):
    buffer = make_plain(tmp_path / "data")
    add(buffer, 2)
    delete(tmp_path / "data")
    with pytest.raises(BufferNotFoundError, match="deleted"):
        buffer.close()
    buffer.close()
    with make_plain(tmp_path / "data") as other:
        add(other, 1)


def test_a_cell_that_is_run_again_after_an_error(tmp_path):
    """The old object goes when the new one has its name: it must not write its metadata over the new one's."""
    folder = tmp_path / "data"
    buffer = make_plain(folder)
    add(buffer, 2)
    shutil.rmtree(folder)
    with pytest.raises(BufferNotFoundError):
        buffer.add_field("extra", "float")
    new = ReplayBuffer(folder, fields={"x": "int64"})
    new.add_field("extra", "float")
    add(new, 3)
    buffer = new
    del new
    gc.collect()
    buffer.close()
    assert [field["name"] for field in json.loads((folder / "metadata.json").read_text())["fields"]] == ["x", "extra"]
    with ReplayBuffer.from_folder(folder, read_only=True) as stored:
        assert contents(stored) == [[0, 1, 2]]


def test_a_deleted_lock_lets_no_second_writer_in(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        delete_lock(tmp_path)
        with ReplayBuffer.from_folder(tmp_path) as other, pytest.raises(BufferLockedError):
            add(other, 1)
        status, answer = run_script(WRITE_ONE, tmp_path)
        assert (status, "is writing to this buffer" in answer) == (0, True)
        with pytest.raises(BufferLockedError):
            add(buffer, 1)
        with pytest.raises(BufferLockedError):
            buffer.close()
    with ReplayBuffer.from_folder(tmp_path) as other:
        add(other, 1)
        assert contents(other) == [[0, 1], [100]]
    assert check_buffer(tmp_path, progress=False).verified


def test_a_link_to_the_folder_may_get_another_target(tmp_path):
    for name in ("one", "two"):
        make_plain(tmp_path / name).close()
    (tmp_path / "latest").symlink_to("one")
    buffer = ReplayBuffer(tmp_path / "latest")
    add(buffer, 2)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("two")
    before = files_of(tmp_path / "two")
    buffer.store_episode(x=[7])
    buffer.close()
    assert files_of(tmp_path / "two") == before
    with ReplayBuffer.from_folder(tmp_path / "one") as one:
        assert contents(one) == [[0, 1], [7]]


def test_a_backup_of_hard_links_disturbs_nothing(tmp_path):
    folder = tmp_path / "data"
    with make_plain(folder) as buffer:
        add(buffer, 2)
        shutil.copytree(folder, tmp_path / "backup", copy_function=os.link)
        add(buffer, 3)
        replace(folder)
        with pytest.raises(ConfigMismatchError):
            add(buffer, 1)
    with ReplayBuffer.from_folder(tmp_path / "moved") as own:
        assert contents(own) == [[0, 1], [100, 101, 102]]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_writer_that_was_released_finds_the_other_folder_out(tmp_path, overwrite):
    folder = tmp_path / "data"
    buffer = make_plain(folder)
    add(buffer, 2)
    buffer.release()
    with make_plain(folder, overwrite=True) if overwrite else make_plain(tmp_path / "new") as other:
        other.store_episode(x=np.arange(3))
    if not overwrite:
        move(folder)
        (tmp_path / "new").rename(folder)
    before = files_of(folder)
    with pytest.raises(ConfigMismatchError, match="another buffer was created in its place"):
        buffer.clear()
    buffer.close()
    assert {name: value[1] for name, value in files_of(folder).items() if name != "writer.lock"} == {
        name: value[1] for name, value in before.items() if name != "writer.lock"
    }
