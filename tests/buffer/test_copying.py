"""merge, select and split_into: whole episodes, all of them, or nothing at all."""

import errno
import gc
import os
import resource
import shutil
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
from buffer_helpers import run_script
from format_helpers import as_of_a_recorder
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import copies, new_folder
from loading_helpers import FIELDS, META, RAGGED, make_episode, world, worlds

from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    ConcatReplayBuffer,
    ConfigMismatchError,
    CorruptBufferError,
    EmptyBufferError,
    EpisodeEvictedError,
    Field,
    FieldError,
    MakeEnvError,
    NotABufferError,
    RecordToBuffer,
    ReplayBuffer,
    StorageError,
    check_buffer,
    merge,
    replay,
    select,
    split,
    split_into,
)

SOME = settings(max_examples=25)


def make(folder, lengths=(3, 5, 2, 7), *, first=0, **options):
    buffer = ReplayBuffer(folder, **{"fields": FIELDS, "meta_fields": META, **options})
    for number, length in enumerate(lengths, first):
        buffer.store_episode(**make_episode(number, length, final=number % 3 != 1))
    return buffer


def assert_same(copies, originals, fields=None, meta=None):
    """The copies are the originals, value by value, under new ids."""
    copies, originals = list(copies), list(originals)
    assert [copy.id for copy in copies] == list(range(len(originals)))
    for copy, original in zip(copies, originals, strict=True):
        assert (len(copy), copy.complete) == (len(original), original.complete)
        assert list(copy) == list(original if fields is None else fields)
        for name in copy:
            if name in RAGGED:
                assert [row.tolist() for row in copy[name]] == [row.tolist() for row in original[name]]
            else:
                np.testing.assert_array_equal(copy[name], original[name])
                assert copy[name].dtype == original[name].dtype
        expected = {name: original.meta[name] for name in (original.meta if meta is None else meta)}
        assert {k: np.asarray(v).tolist() for k, v in copy.meta.items()} == {
            k: np.asarray(v).tolist() for k, v in expected.items()
        }


def assert_sound(buffer):
    report = check_buffer(buffer.folder, progress=False)
    assert report.verified, report
    assert report.num_checked == len(buffer)


def assert_nothing_left(folder):
    """Neither the target nor what is made beside it."""
    assert not folder.exists()
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(f".{folder.name}")]


# --- what is copied ---


@SOME
@given(worlds(), st.data())
def test_chosen_episodes_are_copied_whole(tmp_path_factory, kind, data):
    folder = tmp_path_factory.mktemp("world")
    # Pieces of a few rows: the paths of episodes that are larger than one, and of gaps, are all taken.
    piece, gap = data.draw(st.sampled_from([(40, 16), (64, 0), (256, 64), (1 << 20, 1 << 14)]))
    with pytest.MonkeyPatch.context() as patch, world(folder, **kind) as (buffer, episodes):
        patch.setattr(copies, "PIECE", piece)
        patch.setattr(copies, "GAP", gap)
        patch.setattr(copies, "BLOCK", data.draw(st.sampled_from([1, 300, 1 << 24])))
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(episodes), max_size=len(episodes))))
        if not mask.any():
            with pytest.raises(EmptyBufferError, match="no episode meets episodes="):
                select(buffer, folder / "out", episodes=mask)
            assert_nothing_left(folder / "out")
            return
        with select(buffer, folder / "out", episodes=mask) as copy:
            assert_same(copy, [episode for episode, chosen in zip(episodes, mask, strict=True) if chosen])
            assert_sound(copy)
            copy.store_episode(**make_episode(9, 4))  # it is a buffer as any other
        with ReplayBuffer.from_folder(folder / "out") as copy:
            assert_same(list(copy)[:-1], [episode for episode, chosen in zip(episodes, mask, strict=True) if chosen])
            assert_sound(copy)


def test_merge_takes_the_sources_in_their_order(tmp_path):
    with make(tmp_path / "a", (2, 3)) as a, make(tmp_path / "b", (4,), first=2) as b, make(tmp_path / "c", ()) as c:
        with merge([b, tmp_path / "a", c, ConcatReplayBuffer([a, b])], tmp_path / "out", progress=False) as merged:
            assert_same(merged, [*b, *a, *a, *b])
            assert_sound(merged)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "out"}
        assert [one["task"] for one in (episode.meta for episode in merge([c], tmp_path / "none"))] == []


def test_shards_and_patterns_are_sources(tmp_path):
    for name in ("shards/w1", "shards/w0", "shards/.hidden", "other"):
        make(tmp_path / name, (2, 4), first=len(name)).close()
    expected = [episode for name in ("w0", "w1") for episode in ReplayBuffer.from_folder(tmp_path / "shards" / name)]
    assert_same(merge([tmp_path / "shards"], tmp_path / "one"), expected)
    assert_same(select(f"{tmp_path}/shards/w*", tmp_path / "two"), expected)
    with pytest.raises(BufferNotFoundError, match="no such folder"):
        merge([tmp_path / "nothing"], tmp_path / "three")


def test_the_copy_has_no_limits_and_the_room_of_what_is_live(tmp_path):
    with make(tmp_path / "ring", range(1, 30), circular=True, max_episodes=5, max_steps=200) as ring:
        with select(ring, tmp_path / "out") as copy:
            assert_same(copy, ring)
            assert (copy.circular, copy.max_episodes, copy.max_steps, copy.max_timesteps) == (False, None, None, None)
            assert copy.folder.joinpath("steps/action.npy").stat().st_size == 128 + 8 * int(
                (copy.episode_lens + 1).sum()
            )
            ring.delete([0, 1, 3])
        with select(ring, tmp_path / "out", overwrite=True) as copy:
            assert_same(copy, ring)
            assert np.load(tmp_path / "out/steps/reward.npy").shape == (29 + 27 + 2,)


def test_split_into_is_split(tmp_path):
    with make(tmp_path / "all", [2] * 20) as buffer:
        fractions = {tmp_path / "train": 0.7, tmp_path / "held out": 0.3, tmp_path / "none": 0.0}
        made = split_into(buffer, fractions, seed=3)
        assert [part.folder for part in made] == list(fractions)
        for part, places in zip(made, split(buffer, list(fractions.values()), seed=3), strict=True):
            assert_same(part, [buffer[index] for index in places.tolist()])
            assert_sound(part)
        assert sum(map(len, made)) == 20
        with pytest.raises(FieldError, match="named twice"):
            split_into(buffer, {tmp_path / "x": 0.5, f"{tmp_path}/./x": 0.5})
        with pytest.raises(NotABufferError, match="train"):  # then no other target appears either
            split_into(buffer, {tmp_path / "new": 0.5, tmp_path / "train": 0.5})
        assert_nothing_left(tmp_path / "new")


def test_conditions_go_together(tmp_path):
    with make(tmp_path / "all", range(1, 9)) as buffer:
        chosen = select(
            buffer,
            tmp_path / "out",
            episodes=slice(1, None),
            filter_meta={"task": {0, 1}},
            where="length > 3 and name != 'name 3'",
        )
        expected = [
            e for e in list(buffer)[1:] if e.meta["task"] in (0, 1) and len(e) > 3 and e.meta["name"] != "name 3"
        ]
        assert expected
        assert_same(chosen, expected)
        with pytest.raises(EmptyBufferError, match="where='length > 100'"):
            select(buffer, tmp_path / "none", where="length > 100")
        with pytest.raises(FieldError, match="did you mean 'length'"):
            select(buffer, tmp_path / "none", where="lengths > 100")
        with pytest.raises(IndexError):
            select(buffer, tmp_path / "none", episodes=[8])
        assert_nothing_left(tmp_path / "none")


def test_fields_without_bytes_and_without_meta(tmp_path):
    fields = {"nothing": ("float", 0), "empty": Field("int8", (2, 0), state=True), "x": "int8"}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        for length in (2, 1, 3):
            buffer.store_episode(x=np.arange(length), empty=np.empty((length + 1, 2, 0), np.int8))
        with select(buffer, tmp_path / "b", episodes=[0, 2]) as copy:
            assert_same(copy, [buffer[0], buffer[2]])
            assert_sound(copy)


def test_a_recorded_buffer_stays_one(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "data")
    for seed in (0, 1, None):
        env.reset(seed=seed)
        while not any(env.step(1)[2:4]):
            pass
    env.close()
    with select(env.buffer, tmp_path / "copy", where="episode_seed < 1") as copy:
        assert copy.env_spec.id == "CartPole-v1"
        assert copy.metadata.recorder_meta == env.buffer.metadata.recorder_meta
        assert copy.metadata.uuid != env.buffer.metadata.uuid
        assert [replay(copy, index).status for index in range(2)] == ["equal"] * 2
    again = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "copy")
    again.reset(seed=5)
    again.step(0)
    again.close()
    assert [episode.meta["episode_seed"] for episode in again.buffer] == [0, -1, 5]
    fewer = merge([tmp_path / "copy"], tmp_path / "fewer", fields=["action", "reward"], meta_fields=["episode_seed"])
    assert fewer.env_spec.id == "CartPole-v1"
    assert fewer.action_space == gym.spaces.Discrete(2)
    with pytest.raises(FieldError, match="no observation_space"):
        _ = fewer.observation_space


# --- schemas that differ ---


def test_differing_schemas_are_listed_and_may_be_cut(tmp_path):
    with (
        make(tmp_path / "a", (2, 3)) as a,
        make(tmp_path / "b", (4,), fields={**FIELDS, "extra": "int"}, meta_fields={**META, "task": "float"}) as b,
    ):
        with pytest.raises(ConfigMismatchError) as caught:
            merge([a, b], tmp_path / "out")
        _, extra, task, remedy = str(caught.value).split("\n")
        assert extra == f"  field 'extra': missing in {tmp_path}/a; int64 in {tmp_path}/b"
        assert task == f"  meta field 'task': int64 in {tmp_path}/a; float32 in {tmp_path}/b"
        assert "'common'" in remedy
        with pytest.raises(ConfigMismatchError, match="'task'"):
            merge([a, b], tmp_path / "out", fields=list(FIELDS))
        with merge([a, b], tmp_path / "both", fields="common", meta_fields="common") as merged:
            assert_same(merged, [*a, *b], FIELDS, ["name"])
        with merge([a, b], tmp_path / "out", fields=list(FIELDS), meta_fields=["name"]) as merged:
            assert_same(merged, [*a, *b], FIELDS, ["name"])
            assert_sound(merged)
        for wrong in (["nonsense"], "observation", []):
            with pytest.raises(FieldError):
                merge([a, b], tmp_path / "none", fields=wrong, meta_fields=["name"])
        with pytest.raises(FieldError, match="sequence of sources"):
            merge(a, tmp_path / "none")
        assert_nothing_left(tmp_path / "none")


@pytest.mark.parametrize("is_damaged", [False, True])
def test_without_state_fields_row_t_is_left_behind(tmp_path, is_damaged):
    names = ["action", "reward", "words"]
    make(tmp_path / "a", (2, 5, 3)).close()
    if is_damaged:  # in the row that is not copied
        flip(tmp_path / "a/steps/action.npy", 128 + 2 * 8)
        with pytest.raises(CorruptBufferError, match=r"episode 0 .*'action'"):
            merge([tmp_path / "a"], tmp_path / "out", fields=names)
        return
    with merge([tmp_path / "a"], tmp_path / "out", fields=names) as merged:
        assert_same(merged, ReplayBuffer.from_folder(tmp_path / "a"), names)
        assert not merged.metadata.has_state
        assert not any(episode.has_final for episode in merged)
        assert_sound(merged)


def test_what_the_recorder_keeps_is_not_lost_in_silence(tmp_path):
    for name, own in (("a", ("seed", "run")), ("b", ("seed",))):
        with ReplayBuffer(tmp_path / name, fields={"action": "int"}, meta_fields=dict.fromkeys(own, "int")) as buffer:
            buffer.store_episode(action=[1], **dict.fromkeys(own, 5))
        as_of_a_recorder(tmp_path / name, own)
    sources = [tmp_path / "a", tmp_path / "b"]
    assert list(ConcatReplayBuffer(sources)[1].meta) == ["seed"]
    with pytest.raises(ConfigMismatchError, match="meta field 'run'"):
        merge(sources, tmp_path / "out")
    assert list(merge(sources, tmp_path / "out", meta_fields="common")[0].meta) == ["seed"]


def test_defaults_may_differ(tmp_path):
    for number, name in enumerate("ab"):
        ReplayBuffer(tmp_path / name, fields={"action": ("int", (), number)}).store_episode(action=[5])
    with merge([tmp_path / "b", tmp_path / "a"], tmp_path / "out") as merged:
        assert merged.metadata.fields["action"].default == 1
        assert_same(merged, [ReplayBuffer.from_folder(tmp_path / name)[0] for name in "ba"])


def test_other_environments_are_an_error(tmp_path):
    for name in ("CartPole-v1", "CartPole-v0"):
        with pytest.warns(match="deprecated|out of date") if name.endswith("0") else nullcontext():
            env = RecordToBuffer(gym.make(name), tmp_path / name)
        env.reset(seed=0)
        env.step(0)
        env.close()
    sources = [tmp_path / "CartPole-v1", tmp_path / "CartPole-v0"]
    with pytest.raises(ConfigMismatchError, match=r"CartPole-v1 and CartPole-v0\): their env_spec differ"):
        merge(sources, tmp_path / "out")
    merged = merge(sources, tmp_path / "out", fields=ReplayBuffer.from_folder(sources[0]).fieldnames)
    assert len(merged) == 2
    assert merged.action_space == gym.spaces.Discrete(2)
    with pytest.raises(MakeEnvError, match=r"no env_spec: .* different environments were merged"):
        _ = merged.env_spec


# --- damaged and moving sources ---


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes((byte[0] ^ 1,)))


@pytest.mark.parametrize(
    ("file", "offset", "message"),
    [
        ("steps/reward.npy", 128 + 8 * 5, r"episode 1 \(id 1\) .*'reward'.*checksum"),
        ("steps/observation.npy", -3, r"episode 3 \(id 3\) .*'observation'"),
        ("steps/words.values.npy", -1, r"episode 3 \(id 3\) .*'words'"),
        ("steps/words.spans.npy", 128 + 16 * 5, r"episode 1 \(id 1\) .*'words'.*one row after another"),
        ("steps/seen.spans.npy", 128 + 16 * 5 + 8, r"episode 1 \(id 1\) .*'seen'"),
        ("checksums.npy", 128 + 4 * list(FIELDS).index("action"), r"episode 0 \(id 0\) .*'action'"),
        ("episodes.npy", ("length", 2), "record of the episode with id 2 is damaged"),
        ("strings.npy", 128 + 9, "strings.npy: the string at 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not match its check value")
def test_a_damaged_episode_is_named_and_nothing_copied(tmp_path, file, offset, message):
    make(tmp_path / "a").close()
    path = tmp_path / "a" / file
    if isinstance(offset, tuple):
        table, (column, slot) = np.load(path, mmap_mode="r"), offset
        offset = table.offset + slot * table.itemsize + table.dtype.fields[column][1]
    flip(path, offset % path.stat().st_size)
    with pytest.raises(CorruptBufferError, match=message):
        merge([tmp_path / "a"], tmp_path / "out")
    assert_nothing_left(tmp_path / "out")
    if "values" in file:  # those that are sound can be copied all the same
        assert len(select(tmp_path / "a", tmp_path / "out", episodes=slice(3))) == 3


def test_what_has_no_checksums_yet_gets_them(tmp_path):
    with make(tmp_path / "a") as writer:
        assert check_buffer(writer.folder, progress=False).without_checksum
        with writer.one_episode(task=5):
            writer.store(action=1, reward=2.0)
            copy = select(writer, tmp_path / "out")  # while it is being written
        assert_same(copy, list(writer)[:4])
        assert_sound(copy)


class Interfering:
    """Does something to the source when the first bytes of it were read."""

    def __init__(self, monkeypatch, action):
        self.action = action
        read = copies.read_rows

        def read_rows(*arguments):
            for data in read(*arguments):
                action, self.action = self.action, None
                if action is not None:
                    action()
                yield data

        monkeypatch.setattr(copies, "read_rows", read_rows)


def test_an_evicted_episode_is_no_copy(tmp_path, monkeypatch):
    with make(tmp_path / "ring", circular=True, max_episodes=4) as ring:
        Interfering(monkeypatch, lambda: ring.store_episode(**make_episode(7, 2)))
        with pytest.raises(EpisodeEvictedError, match="episode 0 was evicted"):
            select(ring, tmp_path / "out")
        assert_nothing_left(tmp_path / "out")
        Interfering(monkeypatch, lambda: ring.store_episode(**make_episode(8, 2)))
        assert len(select(ring, tmp_path / "out", episodes=slice(1, None))) == 3


def test_a_source_that_is_changed_meanwhile_gives_one_moment(tmp_path, monkeypatch):
    with make(tmp_path / "a") as buffer:
        before = [episode.copy() for episode in buffer]
        Interfering(
            monkeypatch, lambda: buffer.update(reward=[np.zeros(len(e)) for e in buffer], task=np.zeros(4, int))
        )
        with select(buffer, tmp_path / "out") as copy:
            assert_same(copy, before)
            assert_sound(copy)
        assert not buffer[1]["reward"].any()


def test_an_episode_that_has_gone_since_it_was_chosen(tmp_path):
    with make(tmp_path / "a") as writer, ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as reader:
        assert len(reader) == 4
        writer.delete(2)
        with pytest.raises(EpisodeEvictedError, match="id 2 was evicted or deleted"):
            select(reader, tmp_path / "out")
        assert len(select(reader, tmp_path / "out", episodes=[0, 1, 3])) == 3
        writer.close()
        ReplayBuffer(tmp_path / "a", fields=FIELDS, overwrite=True).close()
        with pytest.raises(ConfigMismatchError, match="another buffer"):
            select(reader, tmp_path / "none", episodes=[0])


# --- the target ---


def test_targets_that_are_refused(tmp_path):
    source = make(tmp_path / "a")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    make(tmp_path / "mixed").close()
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for overwrite in (False, True):
        for name in ("file", "full", "link", "mixed"):
            with pytest.raises(NotABufferError):
                select(source, tmp_path / name, overwrite=overwrite)
    with pytest.raises(NotABufferError, match="overwrite=True"):
        select(source, tmp_path / "a")
    with pytest.raises(NotABufferError, match="inside of the buffer"):
        select(source, tmp_path / "a" / "b" / "c")
    with pytest.raises(BufferLockedError):
        select(source, tmp_path / "a", overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before | {
        path: path.stat().st_mtime_ns for path in (tmp_path, tmp_path / "mixed" / "writer.lock") if path in before
    }


@pytest.mark.parametrize("swaps", [True, False])
def test_a_buffer_is_replaced_at_once(tmp_path, monkeypatch, swaps):
    if not swaps:  # a file system that cannot exchange two folders
        monkeypatch.setattr(new_folder, "_swap", lambda one, other: False)
    make(tmp_path / "a", (2, 3, 4)).close()
    make(tmp_path / "b", (5,)).close()
    reader = ReplayBuffer.from_folder(tmp_path / "a", read_only=True)
    old = [episode.copy() for episode in reader]
    with select(tmp_path / "a", tmp_path / "a", episodes=[0, 2], overwrite=True) as copy:
        assert_same(copy, [old[0], old[2]])
    with merge([tmp_path / "b", tmp_path / "a"], tmp_path / "a", overwrite=True) as copy:
        assert copy.episode_lens.tolist() == [5, 2, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    with pytest.raises(ConfigMismatchError, match="another buffer"):
        reader.refresh()


def test_an_exchange_in_two_steps_that_was_cut_is_undone(tmp_path):
    make(tmp_path / "a").close()
    old = tmp_path / ".b.gym-replay-old"
    shutil.copytree(tmp_path / "a", old)  # killed between the two renames
    with pytest.raises(NotABufferError, match="in its place again"):
        select(tmp_path / "a", tmp_path / "b")
    assert len(ReplayBuffer.from_folder(tmp_path / "b")) == 4
    shutil.copytree(tmp_path / "a", old)  # killed after them
    assert len(select(tmp_path / "a", tmp_path / "b", episodes=[0], overwrite=True)) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_an_empty_folder_and_new_parents_are_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    with make(tmp_path / "a") as source:
        assert_same(select(source, tmp_path / "empty"), source)
        assert_same(select(source, tmp_path / "new/er/est"), source)
        assert_same(select(source, tmp_path / ("long" * 60)), source)


def test_two_copies_to_one_place(tmp_path, monkeypatch):
    source = make(tmp_path / "a")
    refused = []

    def second():
        with pytest.raises(BufferLockedError):
            select(source, tmp_path / "out")
        refused.append(True)

    Interfering(monkeypatch, second)
    assert_same(select(source, tmp_path / "out"), source)
    assert refused


def test_what_lies_in_the_way_of_making_it_is_kept(tmp_path):
    source = make(tmp_path / "a")
    (tmp_path / ".out.gym-replay-new").mkdir()
    (tmp_path / ".out.gym-replay-new" / "mine.txt").write_text("")
    with pytest.raises(NotABufferError, match=r"mine\.txt"):
        select(source, tmp_path / "out")
    assert (tmp_path / ".out.gym-replay-new" / "mine.txt").exists()


# --- ends in the middle ---

KILLED = """
import os, sys
from gym_replay import merge
left = int(sys.argv[3])
def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **options)
    return call
for name in ("pwrite", "fsync", "ftruncate", "replace", "rename"):
    setattr(os, name, dying(getattr(os, name)))
merge([sys.argv[1]], sys.argv[2], overwrite=True)
print(left)
"""


def test_a_killed_copy_leaves_nothing_that_counts(tmp_path):
    make(tmp_path / "a").close()
    status, said = run_script(KILLED, tmp_path / "a", tmp_path / "out", 1 << 30)
    assert status == 0, said
    calls = (1 << 30) - int(said)
    shutil.rmtree(tmp_path / "out")
    for moment in (1, calls // 3, 2 * calls // 3, calls - 1):
        assert run_script(KILLED, tmp_path / "a", tmp_path / "out", moment)[0] == -9
        if moment < calls - 1:  # the last call but one: the folder has its name
            assert not (tmp_path / "out").exists()
            assert (tmp_path / ".out.gym-replay-new").is_dir()
        with merge([tmp_path / "a"], tmp_path / "out", overwrite=True) as copy:
            assert_same(copy, ReplayBuffer.from_folder(tmp_path / "a"))
            assert_sound(copy)
        assert {path.name for path in tmp_path.iterdir()} == {"a", "out"}
        shutil.rmtree(tmp_path / "out")


def test_a_replacement_that_is_killed_leaves_one_of_the_two(tmp_path):
    make(tmp_path / "a").close()
    make(tmp_path / "out", (1,)).close()
    for moment in (40, 80, 100):
        assert run_script(KILLED, tmp_path / "a", tmp_path / "out", moment)[0] == -9
        assert len(ReplayBuffer.from_folder(tmp_path / "out", read_only=True)) in (1, 4)
        assert check_buffer(tmp_path / "out", progress=False).verified


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
def test_a_disk_that_refuses_leaves_nothing(tmp_path, monkeypatch, call):
    make(tmp_path / "a").close()
    real, counts = getattr(os, call), [0, -1]

    def counting(*arguments):
        if f"{os.getpid()}\n".encode() in arguments:  # of a lock, which holds without it
            return real(*arguments)
        counts[0] += 1
        if counts[0] == counts[1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, counting)
    merge([tmp_path / "a"], tmp_path / "whole").close()
    moments = range(2, counts[0], max(counts[0] // 12, 1))
    for moment in moments:
        counts[:] = [0, moment]
        before = sorted(path.name for path in tmp_path.iterdir())
        refused = None
        try:
            merge([tmp_path / "a"], tmp_path / "out").close()
        except StorageError as error:
            refused = str(error)
        if refused is None:  # growing generously was refused, growing as needed was not
            assert call == "ftruncate"
            shutil.rmtree(tmp_path / "out")
        else:
            assert "nothing of it is left; free some space and start it again" in refused
            assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_really_full_disk(tmp_path):
    with make(tmp_path / "a", [20] * 45) as source:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            with pytest.raises(StorageError, match="nothing of it is left; free some space"):
                select(source, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert_nothing_left(tmp_path / "out")


def test_an_interrupted_copy_leaves_nothing(tmp_path, monkeypatch):
    source = make(tmp_path / "a")

    def interrupt():
        raise KeyboardInterrupt

    Interfering(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        split_into(source, {tmp_path / "one": 0.5, tmp_path / "two": 0.5})
    assert_nothing_left(tmp_path / "one")
    assert_nothing_left(tmp_path / "two")


def test_a_disk_that_cannot_be_read(tmp_path, monkeypatch):
    make(tmp_path / "a").close()

    def failing(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(copies, "read_at", failing)
    with pytest.raises(StorageError, match="row 0 and those after it cannot be read; nothing of it is left"):
        merge([tmp_path / "a"], tmp_path / "out")
    assert_nothing_left(tmp_path / "out")


def test_no_descriptor_is_left_open(tmp_path):
    with make(tmp_path / "a") as source:
        select(source, tmp_path / "first").close()
        gc.collect()
        before = len(os.listdir("/dev/fd"))
        for number in range(3):
            select(source, tmp_path / f"out{number}").close()
        gc.collect()
        assert len(os.listdir("/dev/fd")) == before
