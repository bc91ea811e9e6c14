"""Short rounds on full disks; ``python -m tests.faults`` runs the long ones."""

import re
import resource
import sys
import warnings
import weakref
from contextlib import nullcontext, suppress

import pytest
from faults import children, full_disk
from faults.full_disk import DISKS, FILLING, WAYS, SmallDisk, fraction_used, mounted, rounds, why_not_mounted
from faults.scenarios import FIELDS, Deterministic, WithInfos, assert_episode, length_of, rows_of, store
from internals import OpenFiles, small_sizes

from gym_replay import BufferLockedError, RecordToBuffer, ReplayBuffer, StorageError, check_buffer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork and limits"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(params=DISKS)
def kind(request):
    if request.param == "tmpfs" and (reason := why_not_mounted()):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def tmpfs():
    if reason := why_not_mounted():
        pytest.skip(reason)


@pytest.mark.parametrize("name", WAYS)
def test_refused_and_resumed(name, kind):
    refusals, failures = rounds(name, kind, 3, 1)
    assert not failures, failures[0]
    assert refusals, "the disk was never full"


@pytest.mark.parametrize("way", FILLING)
def test_all_space_is_used_first(way, kind):
    assert fraction_used(kind, 5, way) >= 0.9


def limited(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def unlimited():
    limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])


def refused_recorder(folder):
    """A recorder whose episode 1 has ended, and could not be committed."""
    env = RecordToBuffer(Deterministic(0), folder)
    for number in range(2):
        env.reset()
        if number == 1:
            limited(700)
        with pytest.raises(StorageError) if number == 1 else nullcontext():
            for t in range(length_of(number)):
                env.step((1000 * number + t) * 3)
    assert [episode.id for episode in env.buffer] == [0]
    return env


def assert_recorded(buffer, count):
    assert [episode.id for episode in buffer] == list(range(count))
    for episode in buffer:
        assert_episode(episode, ("observation", "action", "reward"))
        assert episode.complete
        assert episode.meta["episode_return"] == pytest.approx(rows_of(episode.id, len(episode))["reward"].sum())


@pytest.mark.parametrize("ending", ["reset", "close"])
@pytest.mark.parametrize("tries", [0, 3])
def test_finished_episode_waits_for_room(tmp_path, ending, tries):
    def work():
        env = refused_recorder(tmp_path / "buffer")
        for _ in range(tries):
            with pytest.raises(StorageError):
                env.reset()
            assert env.unwrapped.number == 1  # the environment was not reset
        unlimited()
        getattr(env, ending)()
        assert_recorded(env.buffer, 2)
        env.close()
        assert_recorded(env.buffer, 2)
        assert check_buffer(tmp_path / "buffer", progress=False).ok

    children.run(work)


def test_finished_episode_waits_for_the_next_close(tmp_path):
    def work():
        env = refused_recorder(tmp_path / "buffer")
        with pytest.raises(StorageError):
            env.close()
        unlimited()
        env.close()
        assert_recorded(env.buffer, 2)

    children.run(work)


def test_close_without_room_holds_the_folder_until_it_succeeds(tmp_path):
    def work():
        env = refused_recorder(tmp_path / "buffer")
        with pytest.raises(StorageError):
            env.close()
        unlimited()
        with ReplayBuffer(tmp_path / "buffer") as other, pytest.raises(BufferLockedError):
            other.store_episode(reward=[1.0])
        env.close()
        with ReplayBuffer(tmp_path / "buffer") as other:
            assert_recorded(other, 2)
            other.store_episode(reward=[1.0])

    children.run(work)


def test_an_episode_without_room_can_be_given_up(tmp_path):
    """The buffer's release forgets it, and then the recorder closes."""

    def work():
        env = refused_recorder(tmp_path / "buffer")
        for _ in range(2):
            with pytest.raises(StorageError):
                env.close()
        env.buffer.release()
        env.close()
        unlimited()
        with ReplayBuffer(tmp_path / "buffer") as other:
            assert_recorded(other, 1)
            other.store_episode(reward=[1.0])

    children.run(work)


def test_a_refused_store_stores_nothing(tmp_path):
    """The caller makes room and stores the same transition again."""

    def work():
        small_sizes(chunk_rows=4)
        buffer = ReplayBuffer(tmp_path / "buffer", fields=FIELDS, meta_fields={"number": "int"})
        store(buffer, 0)
        rows = rows_of(1, 20)
        refusals = 0
        with buffer.one_episode(number=1):
            for t in range(20):
                step = {name: values[t] for name, values in rows.items()}
                limited(200)
                try:
                    buffer.store(**step)
                except StorageError:
                    refusals += 1
                    unlimited()
                    buffer.store(**step)
            unlimited()
            buffer.store_final(observation=rows["observation"][-1], image=rows["image"][-1])
        assert refusals
        assert_episode(buffer.episode(1), length=20)
        buffer.close()

    children.run(work)


def test_step_after_a_refused_commit(tmp_path):
    """The episode has ended, whatever the caller does next."""

    def work():
        env = refused_recorder(tmp_path / "buffer")
        unlimited()
        inner = env.unwrapped
        inner.rows = rows_of(1, 100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env.step(0)
        env.close()
        assert_recorded(env.buffer, 2)

    children.run(work)


def test_episode_goes_on_after_a_refused_reset(tmp_path):
    def work():
        env = RecordToBuffer(Deterministic(1), tmp_path / "buffer")
        env.reset()
        env.step(3 * 1000)
        limited(130)
        with pytest.raises(StorageError):
            env.reset()
        unlimited()
        inner = env.unwrapped
        while inner.t < inner.length:
            env.step((1000 + inner.t) * 3)
        (episode,) = env.buffer
        assert episode["truncated"].any() == (not episode.complete) == (not episode.meta["episode_complete"])
        assert not episode["truncated"][:-1].any()

    children.run(work)


class LateInfo(WithInfos):
    """One entry, from step 8 of each episode on: then the first rows are written already."""

    def reset(self, **options):
        result = super().reset(**options)
        self.length, self.rows = 20, rows_of(self.number, 20)
        return result

    def _info(self):
        return {"late": self.t} if self.t >= 8 else {}


@pytest.mark.parametrize("limits", [{}, {"circular": True, "max_episodes": 9}])
def test_a_field_that_comes_when_there_is_no_room(tmp_path, monkeypatch, limits):
    """Its rows cannot be written before the episode ends; the step is refused, and goes on when there is room."""
    write, refusals = OpenFiles.write_early, []

    def refuse_once(self, rows, length, early):
        if "info.late" in rows and not refusals:
            refusals.append(rows)
            raise StorageError(28, "8 more bytes were needed", str(tmp_path))
        return write(self, rows, length, early)

    monkeypatch.setattr(OpenFiles, "write_early", refuse_once)
    small_sizes(monkeypatch, chunk_rows=4)
    env = RecordToBuffer(LateInfo(0), tmp_path / "buffer", record_info=True, **limits)
    for number in range(3):
        env.reset()
        while env.unwrapped.t < 20:
            with suppress(StorageError):
                env.step((1000 * number + env.unwrapped.t) * 3)
    env.close()
    assert refusals
    with ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True) as buffer:
        assert len(buffer) == 3
        for episode in buffer:
            assert_episode(episode, ("observation", "action", "reward"), length=20)
            assert episode["info.late"].tolist() == [0] * 8 + list(range(8, 21))
    assert check_buffer(tmp_path / "buffer", progress=False).verified


def change(what, buffer):
    if what == "create":
        ReplayBuffer(buffer.folder.parent / "another", fields=FIELDS)
    elif what == "open":
        store(buffer, 1)
    elif what == "add_field":
        buffer.add_field("extra", "float64")
    elif what == "update":
        buffer.update(reward=[[0.0]])
    else:
        buffer.clear()


@pytest.mark.parametrize("what", ["add_field", "create", "update", "clear"])
def test_no_new_files_are_left(tmpfs, what):
    """Of a change that was refused and not tried again."""

    def work():
        buffer = ReplayBuffer(folder / "buffer", fields=FIELDS, meta_fields={"number": "int"})
        store(buffer, 0)
        buffer.flush()
        disk.fill(0)
        with pytest.raises(StorageError):
            change(what, buffer)
        disk.free()
        store(buffer, 1)
        buffer.close()
        assert not list(folder.rglob("*.new"))

    with mounted(2) as folder:
        disk = SmallDisk(folder)
        children.run(work)


@pytest.mark.parametrize("what", ["open", "create", "add_field", "update", "clear"])
def test_disk_without_inodes(tmpfs, what):
    """No file can be created although there are bytes."""

    def work():
        buffer = ReplayBuffer(folder / "buffer", fields=FIELDS, meta_fields={"number": "int"})
        store(buffer, 0)
        if what == "open":
            buffer.close()
            (folder / "buffer" / "writer.lock").unlink()  # as in a copy made without it
            buffer = ReplayBuffer(folder / "buffer")
        names = [folder / f"file{number}" for number in range(100)]
        with pytest.raises(OSError, match="space"):  # noqa: PT012
            for name in names:
                name.touch()
        with pytest.raises(StorageError) as caught:
            change(what, buffer)
        assert re.search(r"(\d+ more bytes|room for one more file) (were|was) needed", str(caught.value))
        assert_episode(buffer.episode(0))
        for name in names:
            name.unlink(missing_ok=True)
        store(buffer, 1)
        for episode in buffer:
            assert_episode(episode)
        buffer.close()
        assert check_buffer(folder / "buffer", progress=False).ok

    with mounted(4, ",nr_inodes=60") as folder:
        children.run(work)


def test_a_ring_that_cannot_grow(kind):
    """What left the ring before the refusal is gone; what stayed is whole, and the ring goes on."""

    def work(disk):
        fields = {**FIELDS, "label": "float64"}
        buffer = ReplayBuffer(
            disk.folder / "ring", fields=fields, meta_fields={"number": "int"}, circular=True, max_episodes=9
        )
        for number in range(9):
            store(buffer, number)
        disk.fill(0)
        for _ in range(5):
            with pytest.raises(StorageError):
                buffer.store_episode(**rows_of(9, 3000), number=9)
        ids = [episode.id for episode in buffer]
        assert ids == list(range(9 - len(ids), 9))
        assert len(ids) >= 8
        for episode in buffer:
            assert_episode(episode)
        disk.free()
        for number in range(9, 30):
            store(buffer, number)
        assert [episode.id for episode in buffer] == list(range(21, 30))
        for episode in buffer:
            assert_episode(episode)
        buffer.close()
        assert check_buffer(disk.folder / "ring", progress=False).ok

    with full_disk.disk_of(kind) as make:
        children.run(lambda: work(make()))


def test_a_recorder_keeps_nothing_of_past_episodes(tmp_path):
    def work():
        env = RecordToBuffer(Deterministic(0), tmp_path / "buffer")
        counts = []
        for number in range(60):
            env.reset()
            for t in range(length_of(number)):
                env.step((1000 * number + t) * 3)
            counts.append(len(weakref.finalize._registry))
        assert counts[-1] <= counts[9]

    children.run(work)
