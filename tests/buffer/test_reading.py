"""ReplayBuffer, reading: episodes and views, eviction, readers beside a writer, and the end."""

import gc
import subprocess
import sys

import numpy as np
import pytest
import torch
from buffer_helpers import FIELDS, META, WRITES, add, contents, files_of, ids, make, make_plain, run_script
from internals import small_sizes

from gym_replay import BufferClosedError, EpisodeEvictedError, EpisodeStateError, FieldError, ReplayBuffer


def test_episodes_by_index(tmp_path):
    with make_plain(tmp_path) as buffer:
        assert list(buffer) == []
        assert bool(buffer)
        assert buffer.episode_lens.tolist() == []
        add(buffer, 1, 2, 3)
        assert [len(episode) for episode in buffer] == [1, 2, 3]
        assert buffer.episode_lens.tolist() == [1, 2, 3]
        assert (len(buffer), buffer.num_episodes, buffer.num_steps) == (3, 3, 6)
        for index in (2, -1, np.int64(2), np.int8(-1)):
            assert buffer.episode(index).id == buffer[index].id == 2
        assert buffer.episode(-3).id == 0
        for index in (3, -4, 1 << 70):
            with pytest.raises(IndexError, match="there are 3"):
                buffer.episode(index)


def test_an_episode_is_a_mapping(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], seed=4)
        buffer.store_episode(state=np.ones((2, 3)), action=[1, 2])
        episode, cut = buffer
        assert list(episode) == episode.keys() == list(FIELDS)
        assert {name: array.shape for name, array in episode.items()} == {
            "state": (3, 3),
            "action": (2,),
            "reward": (2,),
            "done": (2,),
        }
        assert "state" in episode
        assert "seed" not in episode
        assert cut["state"].shape == (2, 3)
        assert (episode.has_final, cut.has_final) == (True, False)
        with pytest.raises(FieldError, match="unknown field 'x'"):
            episode["x"]
        with pytest.raises(FieldError, match=r"episode\.meta"):
            episode["seed"]
        assert episode.meta == {"seed": 4, "score": pytest.approx(np.zeros(2))}
        assert isinstance(episode.meta["seed"], np.int64)


def test_views_are_read_only(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2])
        for array in (*dict(buffer.episode(0).items()).values(), buffer.episode(0)["state"][1:, 0]):
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        copy = buffer.episode(0).copy()
        copy["state"][...] = 5
        assert buffer.episode(0)["state"].max() == 1
        assert copy.id == 0
        assert copy.meta.keys() == META.keys()


def test_views_do_not_copy(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 4)
        one, other = buffer.episode(0)["x"], buffer.episode(0)["x"]
        assert np.shares_memory(one, other)


AFTER = {
    "close": lambda buffer: buffer.close(),
    "clear": lambda buffer: buffer.clear(),
    "clear and store": lambda buffer: (buffer.clear(), buffer.store_episode(x=np.full(3000, -1))),
    "update": lambda buffer: buffer.update(x=np.full((2, 2000), -1)),
    "add_field": lambda buffer: buffer.add_field("y", "float"),
    "delete": lambda buffer: (buffer.delete(slice(None)), buffer.store_episode(x=np.full(3000, -1)), buffer.close()),
    "overwrite": lambda buffer: (
        buffer.close(),
        ReplayBuffer(buffer.folder, fields={"x": "int64"}, overwrite=True).store_episode(x=np.full(3000, -1)),
    ),
}


@pytest.mark.parametrize("act", AFTER.values(), ids=AFTER)
def test_views_stay_good(tmp_path, act):
    buffer = make_plain(tmp_path)
    for number in range(2):
        buffer.store_episode(x=number * 10_000 + np.arange(2000))
    views = [episode["x"] for episode in buffer]
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        others = [episode["x"] for episode in reader]
        act(buffer)
        gc.collect()
        for number, (view, other) in enumerate(zip(views, others, strict=True)):
            assert view.tolist() == other.tolist() == (number * 10_000 + np.arange(2000)).tolist()
    buffer.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda buffer: buffer.clear(),
        lambda buffer: (buffer.clear(), [buffer.store_episode(x=np.full(9, -1), m=-1) for _ in range(2)]),
        lambda buffer: buffer.update(x=[[-1, -1], [-1, -1, -1]], m=[-1, -1]),
        lambda buffer: buffer.add_field("y", "float"),
        lambda buffer: (buffer.update(m=[-1, -1]), buffer.close()),
    ],
    ids=["clear", "clear and store", "update", "add_field", "update and close"],
)
def test_what_was_taken_before_a_change_keeps_showing_what_was(tmp_path, change):
    buffer = make_plain(tmp_path, meta_fields={"m": "int"})
    for number, length in enumerate((2, 3)):
        buffer.store_episode(x=number * 100 + np.arange(length), m=number)
    episode = buffer.episode(1)
    dataset = buffer.dataset(timestep_level=True)
    trajectories = buffer.dataset()
    loader = buffer.dataloader(5, n_steps=1)
    change(buffer)
    assert episode["x"].tolist() == [100, 101, 102]
    assert episode.meta == {"m": 1}
    assert dataset[np.arange(5)]["x"].tolist() == [0, 1, 100, 101, 102]
    assert trajectories[1]["m"] == 1
    assert next(iter(loader))["x"].tolist() == [0, 100, 101], "those whose next row is there"
    assert {name: array.tolist() for name, array in episode.items()} == {"x": [100, 101, 102]}
    assert episode.copy()["x"].tolist() == [100, 101, 102]
    buffer.close()


def test_an_evicted_episode_is_refused_rather_than_torn(tmp_path):
    with make_plain(tmp_path, max_episodes=2, circular=True, meta_fields={"m": "int"}) as buffer:
        for number in range(2):
            buffer.store_episode(x=np.full(3, number), m=number)
        unread, read = buffer.episode(0), buffer.episode(0)
        assert read.copy()["x"].tolist() == [0, 0, 0]
        buffer.store_episode(x=np.full(3, 2), m=2)
        assert ids(buffer) == [1, 2]
        for copy in (unread.copy, read.copy):
            with pytest.raises(EpisodeEvictedError, match="episode 0") as caught:
                copy()
            assert isinstance(caught.value, IndexError)


def test_the_meta_values_of_an_evicted_episode_are_refused_each_time(tmp_path):
    with make_plain(tmp_path, max_episodes=2, circular=True, meta_fields={"m": "int"}) as buffer:
        for number in range(2):
            buffer.store_episode(x=[number], m=number)
        episode = buffer.episode(0)
        buffer.store_episode(x=[2], m=2)
        for _ in range(2):
            with pytest.raises(EpisodeEvictedError, match="episode 0"):
                episode.meta  # noqa: B018


RING_VIEW = """
import sys
import numpy as np
from gym_replay import ReplayBuffer
folder, reopen = sys.argv[1], sys.argv[2] == "reopen"
buffer = ReplayBuffer(folder, fields={"x": ("uint8", 8192)}, circular=True, max_episodes=3)
for number in range(3):
    buffer.store_episode(x=np.full((20, 8192), number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
views = [buffer.episode(2)["x"], reader.episode(2)["x"]]
if reopen:
    buffer.close()
    buffer = ReplayBuffer.from_folder(folder)
for number in range(4):
    buffer.store_episode(x=np.full((1, 8192), 9))
buffer.close()
print(*[view[0, 0] for view in views], *[view[19, 8191] for view in views], len(np.load(folder + "/steps/x.npy")))
"""


@pytest.mark.parametrize("reopen", ["reopen", "stay"])
def test_a_ring_is_not_cut_under_a_view_of_evicted_rows(tmp_path, reopen):
    status, answer = run_script(RING_VIEW, tmp_path, reopen)
    assert (status, answer.split()[:4]) == (0, ["2", "2", "2", "2"]), "a bus error is status -7"


RING_META = """
import sys
import numpy as np
from gym_replay import EpisodeEvictedError, ReplayBuffer
folder = sys.argv[1]
buffer = ReplayBuffer(folder, fields={"x": "float"}, meta_fields={"m": ("uint8", 8192)}, circular=True, max_steps=20)
for number in range(20):
    buffer.store_episode(x=np.ones(1), m=np.full(8192, number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
episode = reader.episode(5)
buffer.store_episode(x=np.ones(20))  # alone in the ring, in slot 0
buffer.close()
try:
    episode.meta
except EpisodeEvictedError:
    print("evicted")
"""


def test_a_ring_is_not_cut_under_the_meta_values_of_evicted_episodes(tmp_path):
    assert run_script(RING_META, tmp_path) == (0, "evicted"), "a bus error is status -7"


def test_get_all_data(tmp_path):
    with make(tmp_path) as buffer:
        assert buffer.get_all_data() == {}
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], done=[False, True], seed=4, score=[1, 2])
        buffer.store_episode(state=np.full((1, 3), 2), action=[3])
        data = buffer.get_all_data()
        assert set(data) == {*FIELDS, *META, "episode_lens"}
        assert all(isinstance(value, torch.Tensor) for value in data.values())
        assert data["state"].tolist() == [[[1, 1, 1], [1, 1, 1]], [[2, 2, 2], [0, 0, 0]]]
        assert data["action"].tolist() == [[1, 2], [3, 0]]
        assert data["reward"].tolist() == [[0.5, 0.5], [0.5, 0]]
        assert data["done"].dtype == torch.bool
        assert data["seed"].tolist() == [4, -7]
        assert data["score"].tolist() == [[1, 2], [0, 0]]
        assert data["episode_lens"].tolist() == [2, 1]
        assert data["episode_lens"].dtype == torch.int64
        assert set(buffer.get_all_data(fields=["action"])) == {"action"}
        assert set(buffer.get_all_data(meta_fields=["seed"])) == {"seed"}
        assert set(buffer.get_all_data(["action"], ["seed"], device="cpu")) == {"action", "seed"}
        for wrong in ({"fields": ["seed"]}, {"meta_fields": ["action"]}, {"fields": ["nothing"]}):
            with pytest.raises(FieldError, match="unknown name"):
                buffer.get_all_data(**wrong)


def test_a_reader_sees_commits_when_it_refreshes(tmp_path):
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        for number in range(40):
            writer.store_episode(x=np.full(500, number))
            assert len(reader) == number
            reader.refresh()
            assert len(reader) == number + 1
            assert reader.episode(-1)["x"].tolist() == [number] * 500
        writer.delete([0, -1])
        assert len(reader) == 40
        reader.refresh()
        assert ids(reader) == list(range(1, 39))
        writer.update(0, x=np.zeros(500, int))
        assert reader.episode(0)["x"].max() == 1
        reader.refresh()
        assert reader.episode(0)["x"].max() == 0
        writer.add_field("y", ("float", (), 2))
        assert reader.fieldnames == ("x",)
        reader.refresh()
        assert reader.episode(0)["y"].tolist() == [2.0] * 500
        writer.clear()
        assert len(reader) == 38
        reader.refresh()
        assert len(reader) == 0


def test_a_reader_in_another_process_sees_commits_while_they_are_made(tmp_path):
    script = """
import sys
from gym_replay import ReplayBuffer
reader = ReplayBuffer.from_folder(sys.argv[1], read_only=True)
for line in sys.stdin:
    reader.refresh()
    print(len(reader), [int(v) for v in reader.episode(-1)["x"]], flush=True)
"""
    with make_plain(tmp_path) as writer:
        add(writer, 1)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            for number in range(1, 5):
                add(writer, 2)
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline().strip() == f"{number + 1} [{number * 100}, {number * 100 + 1}]"
            process.stdin.close()


def test_an_open_episode_is_invisible(tmp_path, monkeypatch):
    small_sizes(monkeypatch, chunk_rows=2)
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path) as reader:
        with writer.one_episode():
            for t in range(9):
                writer.store(x=t)
                reader.refresh()
                assert len(reader) == len(writer) == 0
        reader.refresh()
        assert contents(reader) == [list(range(9))]


USES = {
    **WRITES,
    "len": len,
    "num_steps": lambda buffer: buffer.num_steps,
    "num_episodes": lambda buffer: buffer.num_episodes,
    "episode_lens": lambda buffer: buffer.episode_lens,
    "episode": lambda buffer: buffer.episode(0),
    "iteration": list,
    "store": lambda buffer: buffer.store(x=1),
    "store_batch": lambda buffer: buffer.store_batch(x=[1]),
    "store_final": lambda buffer: buffer.store_final(),
    "refresh": lambda buffer: buffer.refresh(),
    "flush": lambda buffer: buffer.flush(),
    "get_all_data": lambda buffer: buffer.get_all_data(),
    "dataset": lambda buffer: buffer.dataset(),
    "dataloader": lambda buffer: buffer.dataloader(1),
}


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_is_done_with_a_closed_buffer(tmp_path, read_only):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    if read_only:
        buffer = ReplayBuffer.from_folder(tmp_path, read_only=True)
        buffer.close()
    before = files_of(tmp_path)
    for _ in range(2):
        buffer.close()  # twice is fine
    for name, use in USES.items():
        with pytest.raises(BufferClosedError, match="closed") as caught:
            use(buffer)
        assert isinstance(caught.value, ValueError), name
    assert "closed" in repr(buffer)
    assert buffer.folder == tmp_path
    assert files_of(tmp_path) == before


def test_closing_discards_the_open_episode(tmp_path, monkeypatch):
    small_sizes(monkeypatch, chunk_rows=2)
    buffer = make_plain(tmp_path)
    add(buffer, 2)
    context = buffer.one_episode()
    context.__enter__()
    for t in range(9):
        buffer.store(x=t)
    buffer.close()
    with pytest.raises(EpisodeStateError):
        context.__exit__(None, None, None)
    with ReplayBuffer.from_folder(tmp_path) as again:
        assert contents(again) == [[0, 1]]
    assert len(np.load(tmp_path / "steps/x.npy")) == 2


def test_closing_gives_back_what_was_not_used(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2])
        assert len(np.load(tmp_path / "steps/action.npy", mmap_mode="r")) > 3
    for path in tmp_path.rglob("*.npy"):
        assert len(np.load(path)) == {"steps": 3, "commit.npy": 6}.get(path.relative_to(tmp_path).parts[0], 1)
