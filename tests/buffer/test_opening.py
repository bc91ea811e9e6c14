"""ReplayBuffer, opening: creating, another config, overwriting, reading only, and pickling."""

import contextlib
import pickle

import numpy as np
import pytest
from buffer_helpers import FIELDS, META, WRITES, add, contents, files_of, ids, leftovers, make, make_plain
from format_helpers import change_metadata

from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    ConfigMismatchError,
    CorruptBufferError,
    FieldError,
    NotABufferError,
    ReadOnlyError,
    ReplayBuffer,
    check_buffer,
)

OTHER_CONFIGS = {
    "max_episodes": ({"max_episodes": 6}, ["max_episodes: stored 5, passed 6"]),
    "max_timesteps": ({"max_timesteps": 6}, ["max_timesteps: stored 4, passed 6"]),
    "max_steps": ({"max_steps": 9}, ["max_steps: stored None, passed 9"]),
    "circular": ({"circular": True}, ["circular: stored False, passed True"]),
    "dtype": ({"fields": {**FIELDS, "action": "int32"}}, ["fields['action']", "'int64'", "'int32'"]),
    "default": ({"fields": {**FIELDS, "reward": "float64"}}, ["fields['reward']", "0.5", "None"]),
    "state": ({"fields": {**FIELDS, "state": ("float", 3)}}, ["fields['state']", "state=True", "state=False"]),
    "one less": ({"fields": {"action": ("int", (), -1)}}, ["fields['state']", "fields['reward']", "not passed"]),
    "one more": ({"fields": {**FIELDS, "z": "int"}}, ["fields['z']: not stored, passed Field("]),
    "meta": ({"meta_fields": {**META, "seed": "int32"}}, ["meta_fields['seed']", "'int64'", "'int32'"]),
    "several": ({"max_episodes": 6, "meta_fields": {}}, ["max_episodes", "meta_fields['seed']"]),
}


@pytest.mark.parametrize(("config", "parts"), OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_another_config_lists_what_is_stored_and_what_was_passed(tmp_path, config, parts):
    make(tmp_path, max_episodes=5, max_timesteps=4).close()
    before = files_of(tmp_path)
    with pytest.raises(ConfigMismatchError, match="was created with a different config") as caught:
        ReplayBuffer(tmp_path, **config)
    assert isinstance(caught.value, ValueError)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert files_of(tmp_path) == before


def test_none_means_what_is_stored(tmp_path):
    make(tmp_path, max_episodes=5, max_timesteps=4, circular=True).close()
    openings = (
        ReplayBuffer(tmp_path),
        ReplayBuffer.from_folder(tmp_path),
        ReplayBuffer.from_folder(str(tmp_path), read_only=True),
        ReplayBuffer(tmp_path, max_episodes=5),
        make(tmp_path, max_episodes=np.int32(5), max_timesteps=4, circular=True),
    )
    for buffer in openings:
        with buffer:
            assert (buffer.max_episodes, buffer.max_timesteps, buffer.max_steps, buffer.circular) == (5, 4, None, True)
            assert buffer.metadata.fields == FIELDS
            assert buffer.fieldnames == ("state", "action", "reward", "done")
            assert buffer.meta_fieldnames == ("seed", "score")
            assert buffer.folder == tmp_path


def test_a_linear_buffer_is_not_opened_with_the_limits_that_it_lacks(tmp_path):
    make_plain(tmp_path).close()
    with ReplayBuffer(tmp_path, circular=False) as buffer:
        assert not buffer.circular
    with pytest.raises(ConfigMismatchError):
        ReplayBuffer(tmp_path, max_episodes=1)


def test_a_missing_buffer_is_not_created_without_fields(tmp_path):
    for call in (
        lambda: ReplayBuffer(tmp_path / "a"),
        lambda: ReplayBuffer(tmp_path / "a", fields={"x": "int"}, read_only=True),
        lambda: ReplayBuffer.from_folder(tmp_path / "a"),
        lambda: ReplayBuffer.from_folder(tmp_path / "a", read_only=True),
    ):
        with pytest.raises(BufferNotFoundError) as caught:
            call()
        assert isinstance(caught.value, FileNotFoundError)
        assert str(tmp_path / "a") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        {"circular": True},
        {"max_episodes": 0},
        {"max_steps": -1},
        {"max_timesteps": 1.5},
        {"max_episodes": True},
        {"max_episodes": "5"},
        {"fields": {}},
        {"fields": {"a/b": "int"}},
        {"fields": {"a": "complex64"}},
        {"fields": {"Speed": "int", "speed": "int"}},
        {"meta_fields": {"x": "int"}},
        {"durability": "none"},
        {"overwrite": True, "read_only": True},
    ],
    ids=repr,
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_created(tmp_path, config):
    with pytest.raises((FieldError, BufferNotFoundError)):
        make_plain(tmp_path / "data", **config)
    assert not (tmp_path / "data").exists()


def test_an_existing_buffer_is_appended_to(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    with make_plain(tmp_path) as buffer:
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mine", ["notes.txt", "steps/x.npy", "steps/deep/notes.txt", "episodes", ".hidden"])
def test_a_folder_that_is_no_buffer_is_refused(tmp_path, overwrite, mine):
    path = tmp_path / mine
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(NotABufferError, match=path.relative_to(tmp_path).parts[0]) as caught:
        make_plain(tmp_path, overwrite=overwrite)
    assert isinstance(caught.value, FileExistsError)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder(tmp_path, overwrite):
    (tmp_path / "data").write_text("precious")
    with pytest.raises((NotABufferError, NotADirectoryError)):
        make_plain(tmp_path / "data", overwrite=overwrite)
    assert (tmp_path / "data").read_text() == "precious"


def test_overwriting_deletes_only_what_the_metadata_lists(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(action=[1])
    mine = ["notes.txt", "steps/mine.npy", "steps/deep/mine.npy", "checksums/mine.npy", "plots/a.png"]
    for name in mine:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with ReplayBuffer(tmp_path, fields={"action": "int32", "other.deep": "float"}, overwrite=True) as buffer:
        assert len(buffer) == 0
        buffer.store_episode(action=[5, 6])
        assert ids(buffer) == [0]
    assert all((tmp_path / name).read_text() == name for name in mine)
    assert sorted(path.name for path in (tmp_path / "steps").rglob("*.npy")) == [
        "action.npy",
        "deep.npy",
        "mine.npy",
        "mine.npy",
    ]
    assert leftovers(tmp_path) == []
    assert check_buffer(tmp_path, progress=False).ok


def test_overwriting_what_somebody_writes_changes_nothing(tmp_path):
    with make_plain(tmp_path) as writer:
        add(writer, 3)
        before = files_of(tmp_path)
        with pytest.raises(BufferLockedError):
            ReplayBuffer(tmp_path, fields={"y": "int"}, overwrite=True)
        with pytest.raises(FieldError):
            ReplayBuffer(tmp_path, overwrite=True)
        assert files_of(tmp_path) == before
        add(writer, 1)
        assert contents(writer) == [[0, 1, 2], [100]]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("wrote_before", [False, True])
def test_a_stale_buffer_of_an_overwritten_folder_refuses_to_write(tmp_path, write, wrote_before):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
    stale = ReplayBuffer.from_folder(tmp_path)
    if wrote_before:
        add(stale, 1)
        stale.release()
    with make_plain(tmp_path, overwrite=True) as new:
        new.store_episode(x=[-1])
    before = files_of(tmp_path)
    with pytest.raises(ConfigMismatchError, match="another buffer was created in its place"):
        write(stale)
    with pytest.raises(ConfigMismatchError):
        stale.refresh()
    stale.close()
    stale.close()
    after = files_of(tmp_path)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[-1]]
        add(buffer, 1)


def test_nothing_outside_the_folder_is_touched_by_overwriting(tmp_path):
    """Rule 6 and rule 10: a folder from a stranger, in which a folder is a link to somewhere else."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    ReplayBuffer(folder, fields={"x": "int", "sub.important": "int"}).close()
    (folder / "steps/sub").rename(elsewhere)
    (folder / "steps/sub").symlink_to(elsewhere)
    with contextlib.suppress(Exception):
        ReplayBuffer(folder, fields={"x": "int"}, overwrite=True).close()
    assert [path.name for path in elsewhere.iterdir()] == ["important.npy"]


def test_nothing_outside_the_folder_is_touched_by_finishing_a_change(tmp_path):
    """Rule 10: the metadata of a stranger lists an obsolete file behind a link."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    make_plain(folder).close()
    elsewhere.mkdir()
    (elsewhere / "important.npy").write_text("precious")
    (folder / "steps/sub").symlink_to(elsewhere)
    change_metadata(folder, obsolete=["steps/sub/important.npy"])
    with contextlib.suppress(Exception), ReplayBuffer.from_folder(folder) as buffer:
        add(buffer, 1)
    assert (elsewhere / "important.npy").read_text() == "precious"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    make_plain(tmp_path / "data").close()
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "data/writer.lock").unlink()
    (tmp_path / "data/writer.lock").symlink_to(tmp_path / "mine")
    with ReplayBuffer.from_folder(tmp_path / "data") as buffer, pytest.raises(CorruptBufferError, match="links"):
        add(buffer, 1)
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_read_only_buffer_creates_and_writes_nothing(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
    (tmp_path / "writer.lock").unlink()
    before = files_of(tmp_path)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert buffer.read_only
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        buffer.get_all_data()
        list(buffer.dataloader(2, n_steps=1, shuffle=True))
        buffer.refresh()
        buffer.flush()
        buffer.release()
        pickle.loads(pickle.dumps(buffer)).close()
        buffer.episode(0).copy()
        for write in WRITES.values():
            with pytest.raises(ReadOnlyError, match="read_only=True") as caught:
                write(buffer)
            assert isinstance(caught.value, OSError)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
    assert files_of(tmp_path) == before


def test_a_plain_opening_locks_and_writes_nothing_before_the_first_write(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    (tmp_path / "writer.lock").unlink()
    before = files_of(tmp_path)
    with ReplayBuffer.from_folder(tmp_path) as one, ReplayBuffer.from_folder(tmp_path) as other:
        assert len(one) == len(other) == 1
        one.flush()
        assert files_of(tmp_path) == before
        add(other, 1)
        with pytest.raises(BufferLockedError):
            add(one, 1)


def test_a_buffer_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    with make_plain(tmp_path / "data") as buffer:
        add(buffer, 2)
    folders = [tmp_path / "data", *(path for path in (tmp_path / "data").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with ReplayBuffer.from_folder(tmp_path / "data") as buffer:
            assert contents(buffer) == [[0, 1]]
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_pickle_is_the_path_and_reads_only(tmp_path):
    with make_plain(tmp_path) as buffer:
        buffer.store_episode(x=np.arange(50_000))
        content = pickle.dumps(buffer)
        assert len(content) < 1000
        add(buffer, 2)
        with pickle.loads(content) as copy:
            assert copy.read_only
            assert copy.folder == tmp_path
            assert len(copy) == 2
            with pytest.raises(ReadOnlyError):
                add(copy, 1)
    assert len(pickle.loads(content)) == 2, "a pickle outlives the object that it was made of"


def test_a_pickled_dataset_reads_from_the_folder(tmp_path):
    with make_plain(tmp_path) as buffer:
        buffer.store_episode(x=np.arange(50_000))
        dataset = buffer.dataset(timestep_level=True)
        content = pickle.dumps(dataset)
        assert len(content) < 10_000
        assert pickle.loads(content)[np.array([3, 49_999])]["x"].tolist() == [3, 49_999]
