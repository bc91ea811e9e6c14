"""Datasets as Minari 0.4.3 wrote them: one HDF5 file, whose attributes are the metadata."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from interop.minari_helpers import same

from gym_replay import BufferNotFoundError, CorruptBufferError, UnsupportedFormatError, import_minari

pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")

SPACES = {
    "observation_space": {
        "type": "Dict",
        "subspaces": {
            "image": {
                "type": "Box",
                "dtype": "uint8",
                "shape": [32, 32, 3],
                "low": np.zeros((32, 32, 3), int).tolist(),
                "high": np.full((32, 32, 3), 255).tolist(),
            },
            "said": {"type": "Text", "max_length": 5, "min_length": 1, "charset": "ab"},
        },
    },
    "action_space": {
        "type": "Tuple",
        "subspaces": [
            {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3},
            {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]},
        ],
    },
}
SPEC = {
    "id": "CartPole-v1",
    "entry_point": "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
    "reward_threshold": 475.0,
    "nondeterministic": False,
    "max_episode_steps": 9,
    "order_enforce": True,
    "autoreset": False,
    "disable_env_checker": False,
    "apply_api_compatibility": False,
    "kwargs": {},
    "additional_wrappers": [],
    "vector_entry_point": None,
}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


def write(folder, dataset_id="old-v0", seeds=(7, "None"), **attributes):
    """What ``minari.DataCollector.create_dataset`` of that version leaves on the disk."""
    path = folder / dataset_id / "data" / "main_data.hdf5"
    path.parent.mkdir(parents=True)
    metadata = {name: json.dumps(space) for name, space in SPACES.items()}
    metadata |= {"env_spec": json.dumps(SPEC), "dataset_id": dataset_id, "minari_version": "~=0.4", "author": "me"}
    metadata |= {"total_episodes": np.int64(len(seeds)), "total_steps": np.int64(3 * len(seeds))} | attributes
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs.update({name: value for name, value in metadata.items() if value is not None})
        for number, seed in enumerate(seeds):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "seed": seed, "total_steps": 3, "rewards_sum": 3.0, "score": 0.5})
            group["observations/image"] = IMAGES
            group["observations/said"] = np.array(["a", "ab", "b", "ba"], h5py.string_dtype())
            group["actions/_index_0"], group["actions/_index_1"] = np.arange(3), np.ones((3, 2), "f4")
            group["rewards"], group["terminations"] = np.arange(3.0), np.array([False, False, True])
            group["truncations"], group["infos/a/b"] = np.zeros(3, bool), np.arange(4)
    return path


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def test_each_value_is_as_it_was_written(tmp_path, datasets):
    write(datasets)
    with import_minari("old-v0", tmp_path / "b") as buffer:
        assert len(buffer) == 2
        first, second = buffer
        assert same(np.array(first["observation.image"]), IMAGES)  # without the JPEG of 0.5
        assert [row.tobytes() for row in first["observation.said"]] == [b"a", b"ab", b"b", b"ba"]
        assert same(np.array(second["action.0"]), np.arange(3))
        assert same(np.array(second["action.1"]), np.ones((3, 2), "f4"))
        assert second["reward"].tolist() == [0, 1, 2]
        assert second["terminated"].tolist() == [False, False, True]
        assert second["info.a.b"].tolist() == [0, 1, 2, 3]
        assert [episode.meta["episode_seed"] for episode in buffer] == [7, -1]
        assert [episode.meta["score"] for episode in buffer] == [0.5, 0.5]
        assert isinstance(buffer.action_space, spaces.Tuple)
        assert buffer.metadata.environment["env_spec"]["id"] == "CartPole-v1"
        assert buffer.metadata.environment["minari"]["author"] == "me"


def test_one_without_an_environment(tmp_path, datasets):
    write(datasets, env_spec=None)
    with import_minari("old-v0", tmp_path / "b") as buffer:
        assert buffer.metadata.environment["env_spec"] is None


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"observation_space": None}, UnsupportedFormatError, "before 0.4, which did not note its spaces"),
        ({"action_space": None}, UnsupportedFormatError, "before 0.4, which did not note its spaces"),
        ({"total_episodes": np.int64(10**12)}, CorruptBufferError, "total_episodes is 1000000000000, and there are 2"),
        ({"env_spec": "no spec"}, UnsupportedFormatError, "cannot open 'old-v0'"),
        ({"observation_space": '{"type": "Graph"}'}, UnsupportedFormatError, "cannot open 'old-v0'"),
    ],
)
def test_what_cannot_be_read_says_so(tmp_path, datasets, attributes, error, message):
    write(datasets, **attributes)
    with pytest.raises(error, match=message):
        import_minari("old-v0", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_files_that_are_none(tmp_path, datasets):
    path = write(datasets)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UnsupportedFormatError, match="cannot open 'old-v0'"):
        import_minari("old-v0", tmp_path / "b")
    path.unlink()
    with pytest.raises((UnsupportedFormatError, BufferNotFoundError), match="old-v0"):
        import_minari("old-v0", tmp_path / "b")
