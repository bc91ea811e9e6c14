"""A few pulled plugs of each kind, and what the model of the disk keeps; ``python -m tests.faults`` pulls many."""

import itertools
import mmap
import os
import random
import sys
import tempfile
from pathlib import Path

import pytest
from faults.forgetful import PAGE, Choice, Disk, Recording, choices
from faults.power import MEMORY, META, WAYS, Way, record, trials
from faults.scenarios import FIELDS, store

from gym_replay import ReplayBuffer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs the calls of POSIX"),
    pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib keeps calls of its own there, which are not seen"),
]


@pytest.fixture
def memory():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", WAYS)
def test_what_was_promised_is_there_after_a_pulled_plug(memory, name):
    wrong = [found for found in trials(name, memory, 1, 5) if found]
    assert not wrong, wrong[0]


def _forgetting(folder):
    with ReplayBuffer(folder, fields=FIELDS, meta_fields=META) as buffer:
        yield
        for number in range(4):
            store(buffer, number)
            yield


def _unseen(folder):
    (folder.parent / "beside").mkdir(parents=True)
    with open(folder.parent / "beside" / "file", "wb") as file:
        file.write(b"past the recording")
    yield


def test_a_way_that_syncs_nothing_loses_episodes(memory, monkeypatch):
    monkeypatch.setitem(WAYS, "forgetting", Way(_forgetting))
    found = list(trials("forgetting", memory, 1, 20))
    assert sum(each is not None for each in found) > 5


def test_a_change_that_is_not_recorded_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="missed a change"):
        record(Way(_unseen), tmp_path / "recorded")


# --- the model ---


def _left(recording, target, choice):
    """What is in the files after everything that was recorded and a pulled plug."""
    disk = Disk(recording.root)
    for effect in recording.effects:
        disk.apply(effect)
    disk.pull_the_plug(target, choice)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _write(path, content, *, sync):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    assert os.pwrite(descriptor, content, 0) == len(content)
    if sync:
        os.fsync(descriptor)
    os.close(descriptor)


NOTHING, ALL, NAMES, DATA = Choice(0, 0), Choice(1, 1), Choice(0, 1), Choice(1, 0)


@pytest.mark.parametrize(
    ("sync", "sync_name", "choice", "expected"),
    [
        (False, False, NOTHING, {}),
        (False, False, ALL, {"new": b"bytes"}),
        (False, False, NAMES, {"new": b""}),
        (False, False, DATA, {}),
        (True, False, NOTHING, {}),
        (True, False, NAMES, {"new": b"bytes"}),
        (False, True, NOTHING, {"new": b""}),
        (False, True, DATA, {"new": b"bytes"}),
        (True, True, NOTHING, {"new": b"bytes"}),
    ],
)
def test_a_new_file_has_its_bytes_and_its_name_as_far_as_they_were_synced(tmp_path, sync, sync_name, choice, expected):
    (tmp_path / "disk").mkdir()
    with Recording(tmp_path / "disk").running() as recording:
        _write(tmp_path / "disk" / "new", b"bytes", sync=sync)
        if sync_name:
            _sync(tmp_path / "disk")
    assert _left(recording, tmp_path / "left", choice) == expected


@pytest.mark.parametrize(
    ("sync", "choice", "expected"),
    [
        (False, NOTHING, {"name": b"old", "new": b"synced"}),
        (False, Choice(1, 1, renames=False), {"name": b"old", "new": b"synced"}),
        (False, ALL, {"name": b"synced"}),
        (True, NOTHING, {"name": b"synced"}),
    ],
)
def test_a_rename_is_whole_and_stays_once_its_directory_was_synced(tmp_path, sync, choice, expected):
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "name").write_bytes(b"old")
    with Recording(folder).running() as recording:
        _write(folder / "new", b"synced", sync=True)
        _sync(folder)
        os.replace(folder / "new", folder / "name")
        if sync:
            _sync(folder)
    assert _left(recording, tmp_path / "left", choice) == expected


def test_the_pages_and_the_size_of_a_file_are_each_of_some_moment_since_it_was_synced(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "file").write_bytes(b"0" * 3 * PAGE)
    with Recording(folder).running() as recording:
        descriptor = os.open(folder / "file", os.O_RDWR)
        os.pwrite(descriptor, b"1" * 2 * PAGE, 0)
        os.pwrite(descriptor, b"2" * PAGE, PAGE)
        os.ftruncate(descriptor, PAGE + 5)
        os.ftruncate(descriptor, 4 * PAGE)
        os.close(descriptor)
    seen = set()
    for number, (_, choice) in enumerate(itertools.islice(choices(random.Random(0)), 100)):
        content = _left(recording, tmp_path / f"left{number}", choice)["file"]
        seen.add(
            (len(content), *(content[at : at + 1] + content[at + 5 : at + 6] for at in range(0, len(content), PAGE)))
        )
    assert {size for size, *_ in seen} == {3 * PAGE, PAGE + 5, 4 * PAGE}
    assert {first for _, first, *_ in seen} == {b"00", b"11"}
    assert {pages[1] for _, *pages in seen if len(pages) > 2} == {b"00", b"11", b"22", b"2\0"}
    assert {pages[2] for _, *pages in seen if len(pages) > 2} == {b"00", b"\0\0"}


def test_what_is_stored_into_a_map_comes_before_the_next_call(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "file").write_bytes(bytes(8))
    with Recording(folder).running() as recording:
        descriptor = os.open(folder / "file", os.O_RDWR)
        stored = mmap.mmap(descriptor, 8)
        stored[:4] = b"once"
        stored.flush()
        stored[4:] = b"more"
        os.close(descriptor)
    assert _left(recording, tmp_path / "left", NOTHING) == {"file": b"once\0\0\0\0"}
    assert _left(recording, tmp_path / "all", ALL) == {"file": b"oncemore"}
