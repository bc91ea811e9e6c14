"""What is recorded here and exported is what Minari's own collector writes of the same steps."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from interop.minari_helpers import same

from gym_replay import RecordToBuffer, export_minari, import_minari, replay

minari = pytest.importorskip("minari")
pytest.importorskip("jax")  # the collector needs it
# The collector leaves its temporary folders to be removed when it is collected itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def arrow_infos(storage, number):
    """The entries of an episode by name, as the files have them: types, the shapes noted beside them, and values."""
    found = pytest.importorskip("pyarrow.dataset").dataset(
        f"{storage.data_path}/{number}", format=storage.FORMAT, ignore_prefixes=["metadata.json"]
    )
    table = found.to_table()
    while (flat := table.flatten()).num_columns > table.num_columns:
        table = flat
    entries = [name for name in table.column_names if name.startswith("infos.")]
    return {name: (table.schema.field(name), table.column(name).to_pylist()) for name in entries}


class Cameras(gym.Env):
    """Images, nested spaces and texts, drawn from the environment's generator; its infos are nested as well."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (40, 36, 3), np.uint8),
            "state": spaces.Tuple((spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Discrete(5))),
            "said": spaces.Text(4, min_length=0),
        }
    )
    action_space = spaces.Dict({"arm": spaces.Box(-1, 1, (3,), np.float32), "grip": spaces.MultiBinary(2)})

    def _observe(self):
        rng = self.np_random
        return {
            "image": rng.integers(0, 256, (40, 36, 3), np.uint8),
            "state": (rng.normal(size=2), rng.integers(5)),
            "said": "abcd"[: rng.integers(5)],
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._t = 0
        return self._observe(), self._info()

    def _info(self):
        return {"at": np.arange(3.0) * self._t, "deep": {"t": self._t, "ok": self._t > 1, "m": np.ones((2, 2), "f4")}}

    def step(self, action):
        self._t += 1
        return self._observe(), float(self.np_random.normal()), self._t == 4, self._t == 3, self._info()


OPTIONS = {"low": -0.03, "high": 0.03}


def run(env, options=None):
    """Three episodes: two whole ones and one that a reset cuts, all seeded."""
    env.action_space.seed(0)
    for seed, length in ((3, 200), (2**62, 2), (5, 200)):
        env.reset(seed=seed, options=options)
        for _ in range(length):
            if any(env.step(env.action_space.sample())[2:4]):
                break


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("record_infos", [False, True])
@pytest.mark.parametrize("make", [lambda: gym.make("CartPole-v1"), Cameras])
def test_the_collector_and_the_recorder_agree(tmp_path, make, record_infos, data_format):
    options = None if make is Cameras else OPTIONS
    collector = minari.DataCollector(make(), record_infos=record_infos, data_format=data_format, jpeg_encoding=False)
    run(collector, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and so on, none of which is given
        theirs = collector.create_dataset("theirs/test-v0", description="the same")
    recorder = RecordToBuffer(make(), tmp_path / "a", record_info=record_infos)
    run(recorder, options)
    recorder.close()
    ours = export_minari(tmp_path / "a", "ours/test-v0", data_format=data_format, description="the same")

    assert len(ours) == len(theirs) == 3
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert same(getattr(mine, name), getattr(other, name)), name
        if data_format == "hdf5":
            assert same(mine.infos, other.infos)
    if data_format != "hdf5":  # Minari gives nested infos as one dict for each row
        with (
            import_minari("ours/test-v0", tmp_path / "b") as one,
            import_minari("theirs/test-v0", tmp_path / "c") as two,
        ):
            assert set(one.fieldnames) == set(two.fieldnames)
            for mine, other in zip(one, two, strict=True):
                assert all(same(mine[name], other[name]) for name in one.fieldnames if name.startswith("info"))
    numbers = range(3)
    for mine, other in zip(
        ours.storage.get_episode_metadata(numbers), theirs.storage.get_episode_metadata(numbers), strict=True
    ):
        assert all(same(mine[name], value) for name, value in other.items())
        assert mine["seed"] == mine["episode_seed"]
    for name in ("observation_space", "action_space", "env_spec", "description", "jpeg_encoding", "data_format"):
        mine = ours.storage.read_raw_metadata(ours.storage.data_path)
        other = theirs.storage.read_raw_metadata(theirs.storage.data_path)
        assert mine.get(name) == other.get(name), name
    assert ours.env_spec == theirs.env_spec
    assert (ours.total_episodes, ours.total_steps) == (theirs.total_episodes, theirs.total_steps)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_a_collected_dataset_becomes_what_the_recorder_has(tmp_path, data_format):
    collector = minari.DataCollector(Cameras(), record_infos=True, data_format=data_format, jpeg_encoding=False)
    run(collector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collector.create_dataset("theirs/test-v0", author={"b", "a"})
    recorder = RecordToBuffer(Cameras(), tmp_path / "a", record_info=True)
    run(recorder)
    recorder.close()
    with import_minari("theirs/test-v0", tmp_path / "b") as buffer:
        assert buffer.metadata.fields == recorder.buffer.metadata.fields
        for mine, theirs in zip(recorder.buffer, buffer, strict=True):
            for name in mine:
                if mine[name].__class__.__name__ == "Ragged":
                    assert mine[name].tolist() == theirs[name].tolist()
                else:
                    assert mine[name].tobytes() == theirs[name].tobytes(), name
            for name in ("episode_seed", "episode_return"):
                assert mine.meta[name] == theirs.meta[name]
        assert buffer.metadata.environment["minari"]["author"] == ["a", "b"]
        assert buffer.observation_space == Cameras.observation_space
        assert set(buffer.meta_fieldnames) == set(buffer.metadata.recorder_meta)


def test_imported_episodes_are_replayed_and_appended_to(tmp_path):
    collector = minari.DataCollector(gym.make("CartPole-v1"))
    run(collector, OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collector.create_dataset("theirs/test-v0")
    with import_minari("theirs/test-v0", tmp_path / "b") as buffer:
        # The second one was cut by a reset; the collector says that it was truncated, and that is all there is to know.
        assert [replay(buffer, i).status for i in range(3)] == ["equal", "differs", "equal"]
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "b")
    env.reset(seed=0)
    env.step(0)
    env.close()
    assert len(env.buffer) == 4


def test_seeds_of_64_bits_come_back(tmp_path):
    collector = minari.DataCollector(gym.make("CartPole-v1"))
    for seed in (2**64 - 1, 2**63, 7):
        collector.reset(seed=seed)
        collector.step(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collector.create_dataset("theirs/test-v0")
    with import_minari("theirs/test-v0", tmp_path / "b") as buffer:
        assert [int(episode.meta["episode_seed"]) for episode in buffer] == [-1, -1, 7]
        assert json.loads(buffer[0].meta["episode_run"])["imported"]["seed"] == 2**64 - 1
        again = export_minari(buffer, "again/test-v0", data_format="arrow")
    assert [m["seed"] for m in again.storage.get_episode_metadata(range(3))] == [2**64 - 1, 2**63, 7]
