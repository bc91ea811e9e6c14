"""check_buffer: a sound folder has no fault, and each rule that a damaged one breaks is named with its place."""

import json
import os
import shutil
import zlib

import numpy as np
import pytest
from format_helpers import change_metadata, change_record, write_counters
from internals import layout

from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    CheckReport,
    CorruptBufferError,
    Fault,
    Field,
    GymReplayError,
    ReplayBuffer,
    StorageError,
    check_buffer,
)

HEADER = 128
LENGTHS = (3, 1, 4, 2)


def rows_of(number, length=None):
    length = LENGTHS[number % len(LENGTHS)] if length is None else length
    return {
        "state": np.arange(number * 100, number * 100 + 2 * (length + 1), dtype=np.float32).reshape(length + 1, 2),
        "action": np.arange(length) * 3 + number,
        "done": np.arange(length) == length - 1,
    }


def make(folder, count=4, **options):
    """Episodes of 3, 1, 4 and 2 transitions, so rows 0-3, 4-5, 6-10 and 11-13."""
    fields = {"state": Field("float32", (2,), state=True), "action": "int64", "done": "bool"}
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"seed": "int64", "goal": ("float32", 2)}, **options)
    for number in range(count):
        buffer.store_episode(**rows_of(number), seed=number, goal=[number, -number])
    return buffer


def check(folder, **options):
    return check_buffer(folder, progress=False, **options)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def held(folder):
    """What is in a buffer, by id."""
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for episode in buffer:
            for name, rows in rows_of(episode.id).items():
                assert episode[name].tolist() == rows.tolist(), (episode.id, name)
            assert episode.meta["seed"] == episode.id
        return [episode.id for episode in buffer]


def put(folder, path, offset, content):
    with open(folder / path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def flip(folder, path, offset, bit=0):
    content = (folder / path).read_bytes()
    put(folder, path, offset, bytes([content[offset] ^ (1 << bit)]))


def at(folder, path, row, column=None):
    """Where a row of a file begins, or one of its columns."""
    array = np.load(folder / path, mmap_mode="r")
    offset = array.offset + row * array.strides[0]
    if column is not None and array.dtype.names is None:  # of checksums
        fields = json.loads((folder / "metadata.json").read_text())["fields"]
        return offset + array.strides[1] * [entry["name"] for entry in fields].index(column)
    return offset + (0 if column is None else array.dtype.fields[column][1])


def flip_in(folder, path, row, column, bit=0):
    flip(folder, path, at(folder, path, row, column), bit)


# --- what is sound ---


def _ring_after_wrapping(buffer):
    for number in range(4, 11):
        buffer.store_episode(**rows_of(number), seed=number)


def _everything(buffer):
    buffer.update(0, action=[7, 8, 9], seed=5)
    buffer.add_field("extra", Field("float64", (0,)))
    buffer.add_field("info.value", ("float64", (), float("nan")))
    buffer.delete([1])
    buffer.update(state=[np.ones((length, 2)) for length in (3, 4, 2)])
    buffer.store_episode(action=[1])


SOUND = {
    "linear": ({}, lambda buffer: None),
    "empty": ({}, lambda buffer: buffer.clear()),
    "limited": ({"max_episodes": 9, "max_timesteps": 5, "max_steps": 50}, lambda buffer: None),
    "ring of episodes": ({"circular": True, "max_episodes": 4}, _ring_after_wrapping),
    "ring of steps": ({"circular": True, "max_steps": 12}, _ring_after_wrapping),
    "cleared": ({}, lambda buffer: (buffer.clear(), buffer.store_episode(action=[1, 2]))),
    "cleared ring": (
        {"circular": True, "max_episodes": 4},
        lambda buffer: (_ring_after_wrapping(buffer), buffer.clear(), _ring_after_wrapping(buffer)),
    ),
    "updated": ({}, lambda buffer: buffer.update([2, 0], action=[[1, 2, 3, 4], [5, 6, 7]], seed=[8, 9])),
    "field added": ({}, lambda buffer: buffer.add_field("extra", ("float", 2), [np.ones((n, 2)) for n in LENGTHS])),
    "deleted": ({}, lambda buffer: buffer.delete([0, 3])),
    "all deleted": ({}, lambda buffer: buffer.delete(slice(None))),
    "everything": ({}, _everything),
    "everything in a ring": ({"circular": True, "max_episodes": 5}, _everything),
    "durable": ({"durability": "power"}, _everything),
}


@pytest.mark.parametrize(("options", "act"), SOUND.values(), ids=SOUND)
def test_a_sound_buffer_has_no_fault(tmp_path, options, act):
    buffer = make(tmp_path, **options)
    act(buffer)
    count = len(buffer)
    for closing in (False, True):
        before = files_of(tmp_path)
        report = check(tmp_path)
        assert report.ok, str(report)
        assert report.num_episodes == count
        assert report.notes == report.dropped == []
        assert report.num_checked + len(report.without_checksum) == count
        assert "no faults" in str(report)
        assert files_of(tmp_path) == before
        if not closing:
            buffer.close()
    assert report.without_checksum == []
    assert report.num_checked == count
    assert isinstance(report, CheckReport)
    assert check(str(tmp_path), repair=True) == check(tmp_path)


def test_episodes_without_checksums_are_named(tmp_path):
    with make(tmp_path / "data") as buffer:
        shutil.copytree(tmp_path / "data", tmp_path / "none")
        buffer.flush()
        for number in range(4, 6):
            buffer.store_episode(**rows_of(number), seed=number)
        buffer.delete([0])
        shutil.copytree(tmp_path / "data", tmp_path / "some")
    none, some, all_ = (check(tmp_path / name) for name in ("none", "some", "data"))
    assert none.ok
    assert some.ok
    assert all_.ok
    assert [report.verified for report in (none, some, all_)] == [False, False, True]
    assert (none.num_episodes, none.num_checked, none.without_checksum) == (4, 0, [0, 1, 2, 3])
    assert (some.num_episodes, some.num_checked, some.without_checksum) == (5, 3, [4, 5])
    assert (all_.num_episodes, all_.num_checked, all_.without_checksum) == (5, 5, [])
    assert "without checksums so far: 4-5" in str(some)
    assert "without checksums" not in str(all_)


def test_there_must_be_a_buffer(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(BufferNotFoundError):
            check(folder)
    assert list(tmp_path.iterdir()) == []


def killed_in_a_change(tmp_path, monkeypatch, **values):
    """A folder as a process left it that was killed while it updated episode 0 of ``tmp_path / "data"``."""
    real, calls = layout.write_metadata, 0

    def write(folder, metadata):
        nonlocal calls
        calls += 1
        if calls == 2:
            shutil.copytree(tmp_path / "data", tmp_path / "killed")
        real(folder, metadata)

    with make(tmp_path / "data") as buffer, monkeypatch.context() as patch:
        patch.setattr(layout, "write_metadata", write)
        buffer.update(0, **values)
    return tmp_path / "killed"


def test_an_interrupted_change_is_a_note_and_no_fault(tmp_path, monkeypatch):
    folder = killed_in_a_change(tmp_path, monkeypatch, action=[1, 2, 3])
    report = check(folder)
    assert report.ok, str(report)
    assert len(report.notes) == 1
    assert "interrupted" in report.notes[0]
    assert "note:" in str(report)
    assert report.num_checked == 4
    assert check(tmp_path / "data").notes == []


# --- rule by rule ---


def assert_faults(folder, *expected):
    """These are all faults: (rule, file, episode, field). Nothing in the folder changes."""
    before = files_of(folder)
    report = check(folder)
    found = [(fault.rule, fault.file, fault.episode, fault.field) for fault in report.faults]
    assert sorted(set(found), key=repr) == sorted(set(expected), key=repr), str(report)
    assert not report.ok
    assert files_of(folder) == before
    for fault in report.faults:
        assert isinstance(fault, Fault)
        assert f"rule {fault.rule}, {fault.file}" in str(report)
    return report


ARRAYS = [
    "steps/state.npy",
    "steps/action.npy",
    "episodes.npy",
    "checksums.npy",
]
NO_COLUMNS = {
    "magic": lambda path: path.write_bytes(b"X" + path.read_bytes()[1:]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "cut in the header": lambda path: os.truncate(path, 100),
    "version 2": lambda path: path.write_bytes(path.read_bytes()[:6] + b"\x02" + path.read_bytes()[7:]),
    "other dtype": lambda path: np.save(path, np.zeros(len(np.load(path)), ">f4")),
    "other shape": lambda path: np.save(path, np.load(path)[:, None]),
    "directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("damage", NO_COLUMNS.values(), ids=NO_COLUMNS)
def test_rule_1_every_array_is_a_standard_file(tmp_path, array, damage):
    make(tmp_path).close()
    damage(tmp_path / array)
    assert_faults(tmp_path, (1, array, None, None))


def test_rule_1_a_header_that_promises_more_than_there_is(tmp_path):
    make(tmp_path).close()
    os.truncate(tmp_path / "steps/action.npy", HEADER + 8 * 13)  # the last of 14 rows is gone
    report = assert_faults(tmp_path, (1, "steps/action.npy", None, None), (1, "steps/action.npy", 3, "action"))
    assert "numpy.load cannot map it" in str(report)


def test_rule_1_rows_that_are_missing(tmp_path):
    make(tmp_path).close()
    np.save(tmp_path / "steps/state.npy", np.load(tmp_path / "steps/state.npy")[:9])
    assert_faults(tmp_path, (1, "steps/state.npy", 2, "state"), (1, "steps/state.npy", 3, "state"))


def test_rule_1_rows_that_nobody_owns_mean_nothing(tmp_path):
    with make(tmp_path) as buffer:
        buffer.delete([1])
    put(tmp_path, "steps/action.npy", HEADER + 8 * 4, b"\xff" * 16)  # the rows of the deleted episode
    with open(tmp_path / "steps/done.npy", "ab") as file:
        file.write(b"behind all rows")
    assert check(tmp_path).ok


@pytest.mark.parametrize("kind", ["objects", "structure", "column order"])
def test_rule_2_no_objects(tmp_path, kind):
    make(tmp_path).close()
    path = tmp_path / "steps/state.npy"
    array = np.load(path)
    if kind == "objects":
        np.save(path, np.array([{}] * 14, object), allow_pickle=True)
    elif kind == "structure":
        np.save(path, np.zeros(14, [("a", "<f4", 2)]))
    else:
        np.save(path, np.asfortranarray(array))
    assert_faults(tmp_path, (2, "steps/state.npy", None, None))


@pytest.mark.parametrize("content", [b"\x80\x04N.", b"{", b"[]", b"null", b'{"format": "zarr"}'])
def test_metadata_that_is_none(tmp_path, content):
    make(tmp_path).close()
    (tmp_path / "metadata.json").write_bytes(content)
    report = assert_faults(tmp_path, (10, "metadata.json", None, None))
    assert report.num_episodes == 0
    with pytest.raises(GymReplayError):
        check(tmp_path, repair=True)


@pytest.mark.parametrize(("start", "other"), [(3, 0), (6, 2), (7, 2)])
def test_rule_3_no_two_episodes_share_a_row(tmp_path, start, other):
    make(tmp_path).close()
    change_record(tmp_path, 1, start=start)
    expected = (3, "episodes.npy", max(1, other), None)
    report = check(tmp_path)
    assert [(f.rule, f.file, f.episode, f.field) for f in report.faults if f.rule == 3] == [expected]
    pair = (1, other) if start <= (0, 4, 6)[other] else (other, 1)  # in the order of their rows
    assert "episodes {} and {} share rows".format(*pair) in str(report)


def test_rule_3_in_a_ring(tmp_path):
    with make(tmp_path, circular=True, max_episodes=3) as buffer:
        _ring_after_wrapping(buffer)
        starts = {episode.id: episode for episode in buffer}
    assert list(starts) == [8, 9, 10]
    first = int(np.load(tmp_path / "episodes.npy")["start"][8 % 3])
    change_record(tmp_path, 10 % 3, start=first + 1)
    report = check(tmp_path)
    assert {(f.rule, f.file) for f in report.faults} >= {(3, "episodes.npy")}
    assert 10 in {f.episode for f in report.faults if f.rule == 3}


OWNED = range(4, 6)  # the rows of episode 1


@pytest.mark.parametrize(("name", "width"), [("state", 8), ("action", 8), ("done", 1)])
def test_rule_9_every_single_flipped_bit_of_checksummed_rows_is_found(tmp_path, name, width):
    make(tmp_path).close()
    path = f"steps/{name}.npy"
    for offset in range(HEADER + OWNED[0] * width, HEADER + (OWNED[-1] + 1) * width):
        for bit in range(8):
            flip(tmp_path, path, offset, bit)
            (fault,) = check(tmp_path).faults
            assert (fault.rule, fault.file, fault.episode, fault.field) == (9, path, 1, name), (offset, bit)
            flip(tmp_path, path, offset, bit)
    assert check(tmp_path).ok


def test_rule_9_names_all_that_is_damaged(tmp_path):
    make(tmp_path).close()
    flip(tmp_path, "steps/action.npy", HEADER + 8 * 12)  # the last transition of episode 3
    flip(tmp_path, "steps/action.npy", HEADER + 8 * 13)  # its row T, which nobody is served
    flip(tmp_path, "steps/state.npy", HEADER)
    flip(tmp_path, "steps/state.npy", HEADER + 8 * 13)
    assert_faults(
        tmp_path,
        (9, "steps/action.npy", 3, "action"),
        (9, "steps/state.npy", 0, "state"),
        (9, "steps/state.npy", 3, "state"),
    )


def test_rule_9_a_damaged_checksum(tmp_path):
    make(tmp_path).close()
    flip_in(tmp_path, "checksums.npy", 2, "done")
    report = check(tmp_path)
    assert [(fault.rule, fault.episode, fault.field) for fault in report.faults] == [(9, 2, "done")]


def test_rule_9_missing_checksums(tmp_path):
    make(tmp_path).close()
    np.save(tmp_path / "checksums.npy", np.load(tmp_path / "checksums.npy")[:2])
    assert_faults(tmp_path, (9, "checksums.npy", None, None))


def test_rule_9_in_a_ring_and_after_an_update(tmp_path):
    with make(tmp_path, circular=True, max_episodes=3) as buffer:
        _ring_after_wrapping(buffer)
        buffer.update(-1, state=np.ones((5, 2)))
        start = int(np.load(tmp_path / "episodes.npy")["start"][10 % 3])
    flip(tmp_path, "steps/state.npy", HEADER + 8 * start)
    assert_faults(tmp_path, (9, "steps/state.npy", 10, "state"))


BAD_METADATA = {
    "version": {"format_version": 2},
    "feature": {"features": ["wings"]},
    "path": {"fields": [{"name": "../x", "dtype": "int64", "shape": [], "default": None, "state": False}]},
    "object dtype": {"fields": [{"name": "x", "dtype": "object", "shape": [], "default": None, "state": False}]},
    "negative size": {"fields": [{"name": "x", "dtype": "int64", "shape": [-1], "default": None, "state": False}]},
    "huge size": {"fields": [{"name": "x", "dtype": "int64", "shape": [1 << 60], "default": None, "state": False}]},
    "no fields": {"fields": []},
    "limit": {"max_episodes": 0},
    "ring without size": {"circular": True},
    "pending": {"pending": ["steps/other.npy"]},
    "pending outside": {"pending": ["../commit.npy"]},
    "obsolete": {"obsolete": ["metadata.json"]},
    "obsolete outside": {"obsolete": ["steps/../../x.npy"]},
    "obsolete absolute": {"obsolete": ["/etc/passwd.npy"]},
}


@pytest.mark.parametrize("values", BAD_METADATA.values(), ids=BAD_METADATA)
def test_rule_10_metadata(tmp_path, values):
    make(tmp_path).close()
    change_metadata(tmp_path, **values)
    assert_faults(tmp_path, (10, "metadata.json", None, None))
    for act in (lambda: check(tmp_path, repair=True), lambda: ReplayBuffer.from_folder(tmp_path)):
        before = files_of(tmp_path)
        with pytest.raises(GymReplayError):
            act()
        assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("first", 5), ("first", -1), ("next", 0), ("base", 1), ("base", -1), ("summed", 5), ("summed", -1)],
)
def test_rule_10_counters_that_contradict_one_another(tmp_path, name, value):
    make(tmp_path).close()
    write_counters(tmp_path, **{name: value})
    if name == "next":
        write_counters(tmp_path, summed=0, first=1)
    assert_faults(tmp_path, (10, "commit.npy", None, None))
    check(tmp_path, repair=True)
    assert held(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ["cut", "longer", "header", "missing", "link"])
def test_rule_10_a_file_of_counters_that_is_none(tmp_path, damage):
    folder = tmp_path / "data"
    make(folder).close()
    path = folder / "commit.npy"
    if damage == "cut":
        os.truncate(path, 170)
    elif damage == "longer":
        os.truncate(path, 1000)
    elif damage == "header":
        flip(folder, "commit.npy", 60)
    else:
        path.rename(tmp_path / "elsewhere.npy")
        if damage == "link":
            path.symlink_to(tmp_path / "elsewhere.npy")
    assert_faults(folder, (10, "commit.npy", None, None))


def test_rule_10_more_episodes_than_slots(tmp_path):
    with make(tmp_path, circular=True, max_episodes=3) as buffer:
        _ring_after_wrapping(buffer)
    write_counters(tmp_path, first=5)
    report = check(tmp_path)
    assert (10, "commit.npy") in {(fault.rule, fault.file) for fault in report.faults}
    assert "6 live episodes in a table of 3 slots" in str(report)


def test_rule_10_unknown_flags(tmp_path):
    make(tmp_path).close()
    change_record(tmp_path, 2, flags=3 | 64)
    assert_faults(tmp_path, (10, "episodes.npy", 2, None))


@pytest.mark.parametrize("array", ["steps/action.npy", "episodes.npy"])
def test_rule_10_no_link_is_followed(tmp_path, array):
    folder = tmp_path / "data"
    make(folder).close()
    (folder / array).rename(tmp_path / "elsewhere.npy")
    (folder / array).symlink_to(tmp_path / "elsewhere.npy")
    assert_faults(folder, (10, array, None, None))


@pytest.mark.parametrize("column", ["id", "start", "length", "seed", "goal", "flags", "crc"])
def test_rule_11_every_single_flipped_bit_of_a_record_is_found(tmp_path, column):
    make(tmp_path).close()
    begin = at(tmp_path, "episodes.npy", 2, column)
    for offset in range(begin, begin + np.load(tmp_path / "episodes.npy").dtype[column].itemsize):
        for bit in range(8):
            flip(tmp_path, "episodes.npy", offset, bit)
            report = check(tmp_path)
            assert [(fault.rule, fault.episode) for fault in report.faults] == [(11, 2)], (offset, bit)
            assert report.num_episodes == 2, "it and all after it are left out"
            flip(tmp_path, "episodes.npy", offset, bit)
    assert check(tmp_path).ok


def test_rule_11_a_record_of_another_buffer_or_slot_is_none(tmp_path):
    for name in ("one", "other"):
        make(tmp_path / name).close()
    size = np.load(tmp_path / "one" / "episodes.npy").itemsize
    theirs = (tmp_path / "other" / "episodes.npy").read_bytes()
    begin = at(tmp_path / "one", "episodes.npy", 2)
    mine = (tmp_path / "one" / "episodes.npy").read_bytes()[begin - size : begin]
    for content in (theirs[begin : begin + size], mine):
        put(tmp_path / "one", "episodes.npy", begin, content)
        report = check(tmp_path / "one")
        assert [(fault.rule, fault.episode) for fault in report.faults] == [(11, 2)]


@pytest.mark.parametrize("name", ["revision", "base", "first", "next", "summed", "deletions"])
def test_rule_14_every_single_flipped_bit_of_a_counter_is_found_and_repaired(tmp_path, name):
    make(tmp_path / "data").close()
    begin = HEADER + 8 * ("revision", "base", "first", "next", "summed", "deletions").index(name)
    for offset in range(begin, begin + 8):
        for bit in range(8):
            flip(tmp_path / "data", "commit.npy", offset, bit)
            assert_faults(tmp_path / "data", (14, "commit.npy", None, None))
            with pytest.raises(CorruptBufferError, match=f"the counter '{name}' does not match its check value"):
                ReplayBuffer.from_folder(tmp_path / "data", read_only=True)
            flip(tmp_path / "data", "commit.npy", offset, bit)
    flip(tmp_path / "data", "commit.npy", begin, 1)
    (dropped,) = check(tmp_path / "data", repair=True).dropped
    assert name in dropped
    assert "the records have the episodes 0-3" in dropped
    assert held(tmp_path / "data") == [0, 1, 2, 3]
    with make(tmp_path / "data", count=0) as buffer:
        buffer.store_episode(**rows_of(4), seed=4)
    assert held(tmp_path / "data") == [0, 1, 2, 3, 4]
    assert check(tmp_path / "data").verified


@pytest.mark.parametrize("limit", ["max_episodes", "max_steps"])
def test_a_repair_finds_the_episodes_of_a_ring_whose_counters_are_lost(tmp_path, limit):
    with make(tmp_path, circular=True, **{limit: 4 if limit == "max_episodes" else 12}) as buffer:
        _ring_after_wrapping(buffer)
        buffer.delete([1])
        ids = [episode.id for episode in buffer]
    for offset in range(6):
        flip(tmp_path, "commit.npy", HEADER + 8 * offset)
    check(tmp_path, repair=True)
    assert held(tmp_path)[-len(ids) :] == ids
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        for number in range(11, 30):
            buffer.store_episode(**rows_of(number), seed=number)
    assert held(tmp_path)[-1] == 29
    assert check(tmp_path).verified


def test_rule_14_metadata_that_was_changed_by_hand(tmp_path):
    """A dtype of the same width: nothing but a check value shows that every number would be another one."""
    make(tmp_path).close()
    content = (tmp_path / "metadata.json").read_bytes()
    (tmp_path / "metadata.json").write_bytes(content.replace(b'"int64"', b'"float64"', 1))
    with pytest.raises(CorruptBufferError, match="does not match its check value"):
        ReplayBuffer.from_folder(tmp_path, read_only=True)
    assert_faults(tmp_path, (14, "metadata.json", None, None))
    before = files_of(tmp_path)
    with pytest.raises(CorruptBufferError, match="a file contradicts it"):
        check(tmp_path, repair=True)
    assert {name: content for name, content in files_of(tmp_path).items() if name != "writer.lock"} == {
        name: content for name, content in before.items() if name != "writer.lock"
    }
    (tmp_path / "metadata.json").write_bytes(content)
    assert held(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("old", [b'"uuid": "', b'"max_episodes": null', b'"recorder": false'])
def test_rule_14_metadata_that_no_file_contradicts_is_believed_again_and_the_repair_says_so(tmp_path, old):
    make(tmp_path).close()
    content = (tmp_path / "metadata.json").read_bytes()
    assert old in content
    spaces = content.replace(old, old.replace(b": ", b":  "))
    (tmp_path / "metadata.json").write_bytes(spaces)
    assert_faults(tmp_path, (14, "metadata.json", None, None))
    (dropped,) = check(tmp_path, repair=True).dropped
    assert "changed by hand" in dropped
    assert held(tmp_path) == [0, 1, 2, 3]
    assert check(tmp_path).verified


def test_a_repair_says_which_header_it_did_not_believe(tmp_path):
    make(tmp_path).close()
    content = (tmp_path / "steps/action.npy").read_bytes()
    (tmp_path / "steps/action.npy").write_bytes(content.replace(b"'<i8'", b"'<f8'", 1))
    assert_faults(tmp_path, (1, "steps/action.npy", None, None))
    (dropped,) = check(tmp_path, repair=True).dropped
    assert "steps/action.npy" in dropped
    assert "expected int64 rows of shape (), got float64 rows" in dropped
    assert held(tmp_path) == [0, 1, 2, 3]


@pytest.mark.parametrize("values", [{"length": 0}, {"length": -1}, {"start": -1}, {"length": 1 << 61}], ids=repr)
def test_a_record_that_cannot_be_is_damaged(tmp_path, values):
    make(tmp_path).close()
    change_record(tmp_path, 2, **values)
    report = check(tmp_path)
    assert {(fault.rule, fault.episode) for fault in report.faults} == {(11, 2)}


def test_rule_11_records_that_are_missing(tmp_path):
    make(tmp_path).close()
    np.save(tmp_path / "episodes.npy", np.load(tmp_path / "episodes.npy")[:2])
    assert_faults(tmp_path, (11, "episodes.npy", 2, None))


def test_rule_11_a_record_of_another_id(tmp_path):
    """A counter that was set back or forth: the records are those of other episodes."""
    with make(tmp_path, circular=True, max_episodes=3) as buffer:
        _ring_after_wrapping(buffer)
    write_counters(tmp_path, first=9)
    write_counters(tmp_path, next=12)
    report = check(tmp_path)
    assert {(fault.rule, fault.episode) for fault in report.faults} == {(11, 11)}


# --- repair ---


def cut_rows(folder):
    os.truncate(folder / "steps/action.npy", HEADER + 8 * 13)


def share_rows(folder):
    change_record(folder, 3, start=8)
    # Its own rows must be what the checksum says, or it is damaged in two ways.
    for name in ("state", "action", "done"):
        rows = np.load(folder / f"steps/{name}.npy")[8:11]
        put(
            folder,
            "checksums.npy",
            at(folder, "checksums.npy", 3, name),
            zlib.crc32(rows.tobytes()).to_bytes(4, "little"),
        )


REPAIRS = {
    "a flipped row": (lambda f: flip(f, "steps/state.npy", HEADER + 8 * 5), [0, 2, 3], "1"),
    "two flipped rows": (
        lambda f: (flip(f, "steps/state.npy", HEADER), flip(f, "steps/action.npy", HEADER + 8 * 11)),
        [1, 2],
        "0, 3",
    ),
    "a damaged record": (lambda f: flip_in(f, "episodes.npy", 2, "length"), [0, 1], "2-3"),
    "the first record": (lambda f: flip_in(f, "episodes.npy", 0, "crc"), [], "0-3"),
    "a record and a row": (
        lambda f: (flip_in(f, "episodes.npy", 3, "seed"), flip(f, "steps/done.npy", HEADER + 4)),
        [0, 2],
        "1",
    ),
    "a header of rows": (lambda f: put(f, "steps/action.npy", 0, b"broken"), [0, 1, 2, 3], None),
    "a header of the table": (lambda f: put(f, "episodes.npy", 0, b"broken"), [0, 1, 2, 3], None),
    "a header of checksums": (lambda f: put(f, "checksums.npy", 0, b"broken"), [0, 1, 2, 3], None),
    "a missing table": (lambda f: (f / "episodes.npy").unlink(), [], "episodes.npy"),
    "a missing column": (lambda f: (f / "steps/done.npy").unlink(), [], "steps/done.npy"),
    "cut rows": (cut_rows, [0, 1, 2], "3"),
    "missing checksums": (lambda f: (f / "checksums.npy").unlink(), [0, 1, 2, 3], "checksums"),
    "short checksums": (
        lambda f: os.truncate(f / "checksums.npy", at(f, "checksums.npy", 1)),
        [0, 1, 2, 3],
        "checksums",
    ),
    "unknown flags": (lambda f: change_record(f, 2, flags=3 | 64), [0, 1, 3], "2"),
    "shared rows": (share_rows, [0, 1, 2], "3"),
}


@pytest.mark.parametrize(("damage", "kept", "dropped"), REPAIRS.values(), ids=REPAIRS)
def test_a_repair_keeps_the_rest(tmp_path, damage, kept, dropped):
    make(tmp_path).close()
    damage(tmp_path)
    before = files_of(tmp_path)
    found = check(tmp_path)
    assert not found.ok
    assert found.dropped == []
    assert files_of(tmp_path) == before, "without repair nothing is changed"

    report = check(tmp_path, repair=True)
    assert report.faults == found.faults, "the report is of the state before"
    if dropped is not None:
        assert any(dropped in text for text in report.dropped), report.dropped
        assert f"dropped: {report.dropped[0]}" in str(report)
    assert held(tmp_path) == kept
    again = check(tmp_path)
    assert again.ok, str(again)
    assert again.num_episodes == len(kept)

    with ReplayBuffer.from_folder(tmp_path) as buffer:  # it opens, without a warning, and records on
        number = 4 if not kept or dropped not in ("2-3", "0-3") else kept[-1] + 1
        buffer.store_episode(**rows_of(number), seed=number)
        assert len(buffer) == len(kept) + 1
        assert buffer.episode(-1)["action"].tolist() == rows_of(number)["action"].tolist()
    last = check(tmp_path)
    assert last.ok, str(last)
    assert last.without_checksum == []


def test_a_repaired_buffer_whose_episodes_had_no_checksums_yet_is_written_on(tmp_path):
    """The rows of the last episode are cut off: whatever is written next must not stumble over them."""
    with make(tmp_path / "data") as buffer:
        shutil.copytree(tmp_path / "data", tmp_path / "killed")
        del buffer
    folder = tmp_path / "killed"
    os.truncate(folder / "steps/action.npy", HEADER + 8 * 13)
    report = check(folder, repair=True)
    assert any("3" in text for text in report.dropped)
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.delete([0])
        buffer.update(0, seed=8)
        buffer.flush()
        assert [episode.id for episode in buffer] == [1, 2]
    last = check(folder)
    assert last.ok, str(last)
    assert last.without_checksum == []


def test_a_repair_of_a_ring(tmp_path):
    with make(tmp_path, circular=True, max_episodes=4) as buffer:
        _ring_after_wrapping(buffer)
        start = int(np.load(tmp_path / "episodes.npy")["start"][9 % 4])
    flip(tmp_path, "steps/state.npy", HEADER + 8 * start)
    report = check(tmp_path, repair=True)
    assert report.dropped == ["episodes 9, whose rows are damaged"]
    assert held(tmp_path) == [7, 8, 10]
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        for number in range(11, 16):
            buffer.store_episode(**rows_of(number), seed=number)
    assert held(tmp_path) == [12, 13, 14, 15]
    assert check(tmp_path).ok


def test_a_repair_of_what_is_sound_changes_nothing(tmp_path):
    make(tmp_path).close()
    before = files_of(tmp_path)
    report = check(tmp_path, repair=True)
    assert report.ok
    assert report.dropped == []
    assert files_of(tmp_path) == before


def test_a_repair_waits_for_no_writer(tmp_path):
    with make(tmp_path) as buffer:
        buffer.flush()
        flip(tmp_path, "steps/state.npy", HEADER)
        before = files_of(tmp_path)
        with pytest.raises(BufferLockedError):
            check(tmp_path, repair=True)
        assert files_of(tmp_path) == before
        assert not check(tmp_path).ok
    check(tmp_path, repair=True)
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.store_episode(action=[1])  # the repair has let the lock go
        assert [episode.id for episode in buffer] == [1, 2, 3, 4]


def test_a_repair_finishes_an_interrupted_change_first(tmp_path, monkeypatch):
    folder = killed_in_a_change(tmp_path, monkeypatch, action=[7, 7, 7])
    flip(folder, "steps/state.npy", HEADER + 8 * 5)
    assert check(folder, repair=True).dropped == ["episodes 1, whose rows are damaged"]
    assert list(folder.rglob("*.new")) == []
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        assert [episode.id for episode in buffer] == [0, 2, 3]
        assert buffer.episode(0)["action"].tolist() == [7, 7, 7]
    report = check(folder)
    assert report.ok, str(report)
    assert report.notes == []


def test_a_repair_removes_no_link_and_nothing_behind_one(tmp_path):
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    make(folder).close()
    (folder / "steps/done.npy").rename(tmp_path / "done.npy")
    (folder / "steps/done.npy").symlink_to(tmp_path / "done.npy")
    elsewhere.mkdir()
    (elsewhere / "important.npy").write_text("precious")
    (folder / "steps/sub").symlink_to(elsewhere)
    content = (tmp_path / "done.npy").read_bytes()
    with pytest.raises(CorruptBufferError, match="link"):
        check(folder, repair=True)
    assert (folder / "steps/done.npy").is_symlink()
    change_metadata(folder, obsolete=["steps/sub/important.npy"])
    with pytest.raises((CorruptBufferError, StorageError)):
        check(folder, repair=True)
    assert (elsewhere / "important.npy").read_text() == "precious"
    assert (tmp_path / "done.npy").read_bytes() == content


def test_the_report_is_text_for_people():
    fault = Fault(9, "steps/x.npy", "the rows of episode 1 do not match", 1, "x")
    assert str(fault) == "rule 9, steps/x.npy: the rows of episode 1 do not match"


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_episodes": 4}], ids=["linear", "ring"])
@pytest.mark.parametrize("unsummed", [0, 2])
def test_counters_that_are_made_anew_still_find_damaged_rows(tmp_path, options, unsummed):
    """Also where the newest episodes have no checksums, and one of these was deleted."""
    with make(tmp_path / "data", **options) as buffer:
        buffer.flush()
        for number in range(4, 4 + unsummed):
            buffer.store_episode(**rows_of(number), seed=number)
        if unsummed:
            buffer.delete(-1)
        ids = [episode.id for episode in buffer]
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
    folder = tmp_path / "copy"
    start = int(np.load(folder / "episodes.npy")["start"][2])
    flip(folder, "steps/action.npy", HEADER + 8 * start)  # of episode 2
    flip(folder, "commit.npy", (folder / "commit.npy").stat().st_size - 24)
    report = check(folder, repair=True)
    assert report.dropped[-1] == "episodes 2, whose rows are damaged"
    assert held(folder) == [number for number in ids if number != 2]
    after = check(folder)
    assert after.ok
    assert after.without_checksum == ids[-1:] * bool(unsummed)
