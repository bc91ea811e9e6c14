"""Exports to Minari: what it cannot hold, what is left when something fails, and what datasets say of themselves."""

import json
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from interop.minari_helpers import FORMATS, Playing, assert_same_buffer, record, same

import gym_replay
from gym_replay import (
    ConcatReplayBuffer,
    EmptyBufferError,
    Field,
    FieldError,
    MissingExtraError,
    NotABufferError,
    ReferenceReturns,
    ReplayBuffer,
    StorageError,
    UnsupportedSpaceError,
    export_minari,
    import_minari,
    select,
)

minari = pytest.importorskip("minari")
episode_buffer = pytest.importorskip("minari.data_collector.episode_buffer")

VALUES = [np.full(2, t, np.float32) for t in range(6)]
SPACE = spaces.Box(-9, 9, (2,), np.float32)


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture
def buffer(tmp_path):
    return record(tmp_path / "a", Playing(SPACE, VALUES), [(1, 0, 1), (2, 0, 1, 2, 3, 4), (None, 3)])


def left(datasets):
    """All that is in the folder of datasets."""
    return sorted(path.relative_to(datasets).as_posix() for path in datasets.rglob("*")) if datasets.exists() else []


def test_ends_of_episodes(buffer):
    dataset = export_minari(buffer, "ends-v0")
    assert [episode.terminations.tolist() for episode in dataset] == [[False, False], [False] * 4 + [True], [False]]
    assert [episode.truncations.tolist() for episode in dataset] == [[False, True], [False] * 5, [True]]
    assert [len(episode.observations) for episode in dataset] == [3, 6, 2]
    own = [json.loads(m["gym_replay"])["complete"] for m in dataset.storage.get_episode_metadata(range(3))]
    assert own == [False, True, False]
    assert [m.get("seed") for m in dataset.storage.get_episode_metadata(range(3))] == [1, 2, None]


def test_which_episodes(buffer, tmp_path):
    buffer.delete(0)
    assert [len(episode) for episode in export_minari(buffer, "all-v0")] == [5, 1]
    assert [len(episode) for episode in export_minari(buffer, "last-v0", episodes=[-1])] == [1]
    assert [len(episode) for episode in export_minari(buffer, "mask-v0", episodes=np.array([True, False]))] == [5]
    assert [len(episode) for episode in export_minari(buffer, "long-v0", episodes="length > 2")] == [5]
    with pytest.raises(FieldError, match="named twice"):
        export_minari(buffer, "none-v0", episodes=[0, 0])
    both = ConcatReplayBuffer([buffer, select(buffer, tmp_path / "copy", progress=False)])
    assert [len(episode) for episode in export_minari(both, "both-v0", episodes=slice(1, None))] == [1, 5, 1]
    with pytest.raises(IndexError, match="there are 2"):
        export_minari(buffer, "none-v0", episodes=[2])
    with pytest.raises(EmptyBufferError):
        export_minari(buffer, "none-v0", episodes=[])


def test_a_circular_buffer(tmp_path):
    buffer = record(
        tmp_path / "a", Playing(SPACE, VALUES), [(n, *[n] * (n + 1)) for n in range(4)], circular=True, max_episodes=2
    )
    dataset = export_minari(buffer, "ring-v0")
    assert [episode.actions.tolist() for episode in dataset] == [[2] * 3, [3] * 4]


# --- what Minari cannot hold ---


def test_parts_of_spaces_are_named_or_left_out(tmp_path):
    space = spaces.Dict({"ok": SPACE, "a": spaces.Sequence(spaces.Discrete(2)), "in": spaces.Dict({"a/b": SPACE})})
    value = {"ok": VALUES[0], "a": (1, 0), "in": {"a/b": VALUES[1]}}
    buffer = record(tmp_path / "a", Playing(space, [value] * 3), [(0, 0, 1)])
    with pytest.raises(UnsupportedSpaceError, match=r"observation\.a: .* no Sequence .*on_unsupported='drop'"):
        export_minari(buffer, "some-v0")
    with pytest.warns(UserWarning, match=r"left out:\n  observation\.a: .*\n  observation\.in\.a%2Fb: "):
        dataset = export_minari(buffer, "some-v0", on_unsupported="drop")
    assert list(dataset.observation_space) == ["in", "ok"]
    with import_minari("some-v0", tmp_path / "b") as back:
        assert [name for name in back.fieldnames if name.startswith("obs")] == ["observation.ok"]
        assert dict(back.observation_space["in"].spaces) == {}
        assert back.episode(0)["observation.ok"].tobytes() == buffer.episode(0)["observation.ok"].tobytes()
        assert np.array_equal(back.episode(0)["action"], [0, 1])


def test_a_part_of_a_tuple_is_not_left_out_alone(tmp_path):
    space = spaces.Tuple((SPACE, spaces.Sequence(spaces.Discrete(2))))
    buffer = record(tmp_path / "a", Playing(space, [(VALUES[0], (1,))] * 3), [(0, 0)])
    with pytest.raises(UnsupportedSpaceError, match="nothing of the observation space"):
        export_minari(buffer, "some-v0", on_unsupported="drop")


def test_a_missing_last_observation(tmp_path):
    fields = {"observation": Field("float", 2, state=True), "action": "int", "reward": "float64"}
    with ReplayBuffer(tmp_path / "a", fields={**fields, "terminated": "bool", "truncated": "bool"}) as buffer:
        buffer.store_episode(observation=np.ones((3, 2)), action=[1, 2], terminated=[False, True])
        buffer.store_episode(observation=np.ones((2, 2)), action=[1, 2])
        with pytest.raises(FieldError, match=r"episode 1: .*last observation was not recorded"):
            export_minari(buffer, "some-v0")
        with pytest.warns(UserWarning, match="episode 1: "):
            assert len(export_minari(buffer, "some-v0", on_unsupported="drop")) == 1
        with pytest.raises(EmptyBufferError, match="none of the episodes"):
            export_minari(buffer, "none-v0", on_unsupported="drop", episodes=[1])


@pytest.mark.parametrize("data_format", FORMATS)
def test_buffers_stored_by_hand(tmp_path, data_format):
    fields = {
        "observation.a": Field("float", 2, state=True),
        "observation.b": Field("uint8", state=True),
        "action": ("int32", 3),
        "reward": "float",
        "terminated": "bool",
        "truncated": "bool",
        "value": Field("float16", default=1.5),
        "hidden": Field("int8", (2,), state=True),
    }
    with ReplayBuffer(tmp_path / "a", fields=fields, meta_fields={"task": "str"}) as buffer:
        rng = np.random.default_rng(0)
        arrays = {"observation.a": rng.normal(size=(4, 2)), "observation.b": np.arange(4, dtype="u1")}
        buffer.store_episode(
            **arrays, action=np.ones((3, 3), "i4"), reward=np.ones(3), value=np.zeros(3), hidden=np.ones((4, 2), "i1"),
            task="x",
        )  # fmt: skip
        dataset = export_minari(buffer, "hand-v0", data_format=data_format)
        assert dataset.observation_space["a"] == spaces.Box(-np.inf, np.inf, (2,), np.float32)
        assert dataset[0].rewards.dtype == np.float32
        with import_minari("hand-v0", tmp_path / "b") as back:
            assert_same_buffer(buffer, back)


def test_buffers_without_what_every_step_has(tmp_path):
    with ReplayBuffer(tmp_path / "a", fields={"observation": Field("float", state=True), "action": "int"}) as buffer:
        buffer.store_episode(observation=[1, 2], action=[0])
        with pytest.raises(FieldError, match=r"no field 'reward'.*add_field\('reward'"):
            export_minari(buffer, "hand-v0")
    with ReplayBuffer(tmp_path / "b", fields={"state": "float"}) as buffer:
        buffer.store_episode(state=[1, 2])
        with pytest.raises(FieldError, match="no field 'observation'"):
            export_minari(buffer, "hand-v0")


def test_ragged_extra_fields(tmp_path):
    fields = dict.fromkeys(("terminated", "truncated"), "bool") | {"action": "int", "reward": "float"}
    fields |= {"observation": Field("float", state=True), "words": Field("uint8", ragged=True)}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        buffer.store_episode(observation=[1, 2], action=[0], words=[[1, 2, 3]])
        with pytest.raises(FieldError, match=r"field 'words': .*different sizes"):
            export_minari(buffer, "hand-v0")
        with pytest.warns(UserWarning, match="field 'words'"):
            export_minari(buffer, "hand-v0", on_unsupported="drop")
        with import_minari("hand-v0", tmp_path / "b") as back:
            assert set(back.fieldnames) == set(fields) - {"words"}


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_episodes_that_arrow_would_not_give_back(tmp_path, data_format):
    fields = dict.fromkeys(("terminated", "truncated"), "bool") | {"action": "bool", "reward": "float"}
    with ReplayBuffer(tmp_path / "a", fields={**fields, "observation": Field("bool", state=True)}) as buffer:
        for length in (32_767, 32_768):
            buffer.store_episode(observation=np.arange(length + 1) % 7 == 0, action=np.zeros(length, bool))
        with pytest.raises(FieldError, match=r"episode 1: .*32768 steps"):
            export_minari(buffer, "long-v0", data_format=data_format)
        export_minari(buffer, "long-v0", data_format=data_format, episodes=[0])
        export_minari(buffer, "long-v1")
        with import_minari("long-v0", tmp_path / "b") as back, import_minari("long-v1", tmp_path / "c") as all_of_it:
            assert np.array_equal(back.episode(0)["observation"], buffer.episode(0)["observation"])
            assert_same_buffer(buffer, all_of_it)


def test_rewards_of_several_values(tmp_path):
    class Two(Playing):
        reward_space = spaces.Box(-1, 1, (2,))

        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, np.array([reward, -0.0]), *rest

    buffer = record(tmp_path / "a", Two(SPACE, VALUES), [(0, 1, 2)])
    assert same(export_minari(buffer, "two-v0")[0].rewards, buffer.episode(0)["reward"])
    with import_minari("two-v0", tmp_path / "b") as back:
        assert_same_buffer(buffer, back)
    with pytest.raises(FieldError, match=r"'reward'.*hdf5"):
        export_minari(buffer, "two-v1", data_format="arrow")


def test_specs_that_are_no_json(tmp_path):
    env = gym.make("CartPole-v1")
    env.unwrapped.spec.kwargs["sizes"] = np.arange(3)
    buffer = record(tmp_path / "a", env, [(0, 1)])
    with pytest.raises(FieldError, match="the environment's spec"):
        export_minari(buffer, "spec-v0")
    with pytest.warns(UserWarning, match="spec"):
        assert export_minari(buffer, "spec-v0", on_unsupported="drop").env_spec is None


# --- images ---


@pytest.mark.parametrize("data_format", FORMATS)
def test_images_are_encoded_only_where_asked_to(tmp_path, data_format):
    space = spaces.Box(0, 255, (48, 32, 3), np.uint8)
    images = list(np.random.default_rng(0).integers(0, 256, (4, 48, 32, 3), np.uint8))
    buffer = record(tmp_path / "a", Playing(space, images), [(0, 1, 2, 3)])
    exact = export_minari(buffer, "exact-v0", data_format=data_format)
    assert same(exact[0].observations, np.stack(images))
    lossy = export_minari(buffer, "lossy-v0", data_format=data_format, jpeg_encoding=True)
    assert not same(lossy[0].observations, np.stack(images))
    assert lossy[0].observations.shape == (4, 48, 32, 3)
    with import_minari("lossy-v0", tmp_path / "b") as back:
        assert back.metadata.environment["minari"]["jpeg_encoding"] is True
        assert same(np.array(back.episode(0)["observation"]), lossy[0].observations)


def test_images_that_are_no_jpeg(tmp_path):
    space = spaces.Box(0, 255, (32, 32, 4), np.uint8)
    buffer = record(tmp_path / "a", Playing(space, [np.zeros((32, 32, 4), np.uint8)] * 2), [(0, 1)])
    with pytest.raises(UnsupportedSpaceError, match="JPEG has three channels"):
        export_minari(buffer, "lossy-v0", jpeg_encoding=True)


# --- the place of the dataset ---


def test_a_dataset_that_is_there_is_refused(buffer, datasets):
    export_minari(buffer, "name/space-v0")
    before = left(datasets)
    with pytest.raises(NotABufferError, match=r"already; .*minari\.delete_dataset\('name/space-v0'\)"):
        export_minari(buffer, "name/space-v0")
    with pytest.raises(NotABufferError, match="the namespace is a dataset"):
        export_minari(buffer, "name/space-v0/inner-v0")
    assert left(datasets) == before


@pytest.mark.parametrize(
    "wrong", ["x", "a/b", "../x-v0", "x y-v0", "/x-v0", "", "x-v", "data/x-v0", "ab/data/x-v0", "ab//cd/x-v0"]
)
def test_ids_that_are_none(buffer, wrong, datasets):
    with pytest.raises(FieldError, match="dataset id"):
        export_minari(buffer, wrong)
    assert left(datasets) == []


def test_namespaces_are_made(buffer):
    export_minari(buffer, "outer/inner/x-v0")
    assert minari.namespace.list_local_namespaces() == ["outer", "outer/inner"]
    assert list(minari.list_local_datasets()) == ["outer/inner/x-v0"]


@pytest.mark.parametrize("data_format", FORMATS)
def test_nothing_is_left_of_an_export_that_failed(buffer, datasets, monkeypatch, data_format):
    real, seen = episode_buffer.EpisodeBuffer, []

    def make(**content):
        seen.append(left(datasets))
        if len(seen) > 2:
            raise OSError(28, "No space left on device")
        return real(**content)

    monkeypatch.setattr(episode_buffer, "EpisodeBuffer", make)
    with pytest.raises(StorageError, match=r"No space left.*nothing of it is left"):
        export_minari(buffer, "name/space-v0", data_format=data_format)
    assert any(seen)
    assert not minari.list_local_datasets()
    assert left(datasets) == []


def test_a_killed_export_is_cleaned_up_by_the_next(buffer, datasets):
    script = (
        "import os; from gym_replay import export_minari; from minari.data_collector import episode_buffer\n"
        "episode_buffer.EpisodeBuffer = lambda **content: os._exit(9)\n"
        f"export_minari({str(buffer.folder)!r}, 'killed-v0')"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert any(name.startswith(".killed-v0") for name in left(datasets))
    assert not minari.list_local_datasets()
    export_minari(buffer, "killed-v0")
    assert {name.split("/")[0] for name in left(datasets)} == {"killed-v0"}


def test_files_may_be_read_as_the_umask_says(buffer, datasets):
    before = os.umask(0o022)
    try:
        export_minari(buffer, "open-v0")
    finally:
        os.umask(before)
    assert (datasets / "open-v0").stat().st_mode & 0o777 == 0o755


# --- what a dataset says of itself ---


def test_about_the_dataset(tmp_path, buffer):
    about = {
        "algorithm_name": "random",
        "code_permalink": "https://example.org/code",
        "description": "what it is",
        "requirements": ["numpy>=2"],
        "ref_min_score": 1.0,
        "ref_max_score": 2.5,
    }
    dataset = export_minari(buffer, "about-v0", author="a", author_email={"b", "c"}, eval_env="CartPole-v1", **about)
    found = dataset.storage.metadata
    assert {name: found[name] for name in about} == about
    assert (found["author"], found["author_email"]) == ({"a"}, {"b", "c"})
    assert dataset.recover_environment(eval_env=True).spec.id == "CartPole-v1"
    assert minari.get_normalized_score(dataset, np.array([2.5])) == [1.0]

    with import_minari("about-v0", tmp_path / "b") as back:
        again = export_minari(back, "about-v1", data_format="arrow", description="other").storage.metadata
    assert {**found, "description": "other"}.items() >= {
        k: again[k] for k in (*about, "author", "author_email")
    }.items()
    assert again["eval_env_spec"] == found["eval_env_spec"]
    with pytest.raises(FieldError, match="author: expected a string"):
        export_minari(buffer, "about-v2", author={1})
    export_minari(buffer, "nan-v0", ref_min_score=float("nan"))
    with import_minari("nan-v0", tmp_path / "nan") as back:
        assert back.metadata.environment["minari"]["ref_min_score"] == "NaN"
        assert "ref_min_score" not in export_minari(back, "nan-v1").storage.metadata


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_reference_returns_are_minaris_scores(tmp_path, buffer, data_format):
    buffer.set_reference_returns(ReferenceReturns(random=-1.25, expert=2.5))
    dataset = export_minari(buffer, "scored-v0", data_format=data_format)
    returns = np.array([-1.25, 0.5, 2.5])
    assert (100 * minari.get_normalized_score(dataset, returns)).tolist() == buffer.normalized_score(returns).tolist()
    with import_minari("scored-v0", tmp_path / "back") as back:
        assert back.reference_returns == ReferenceReturns(-1.25, 2.5)
        back.set_reference_returns(ReferenceReturns(0.0, 5.0))  # which goes before what the dataset said
        found = export_minari(back, "scored-v1", ref_max_score=7.0).storage.metadata
        assert (found["ref_min_score"], found["ref_max_score"]) == (0.0, 7.0)
    half = export_minari(buffer, "half-v0", ref_min_score=float("nan"))
    with import_minari(half, tmp_path / "half") as back:
        assert back.reference_returns == ReferenceReturns(None, 2.5)


def test_entry_points_of_strangers_are_not_passed_on(tmp_path, datasets, buffer):
    spec = {"id": "Theirs-v0", "entry_point": "their.module:Env"}
    export_minari(buffer, "theirs-v0", eval_env=gym.envs.registration.EnvSpec(**spec))
    with import_minari("theirs-v0", tmp_path / "b") as back:
        again = export_minari(back, "ours-v0")
    assert "their.module" in (datasets / "theirs-v0" / "data" / "metadata.json").read_text()
    spec = json.loads(again.storage.metadata["eval_env_spec"])
    assert (spec["id"], spec["entry_point"]) == ("Theirs-v0", None)


def test_the_environment_can_be_made_again(tmp_path):
    buffer = record(tmp_path / "a", gym.make("CartPole-v1", max_episode_steps=7), [(0, 1)])
    dataset = export_minari(buffer, "cart-v0")
    assert dataset.env_spec == gym.make("CartPole-v1", max_episode_steps=7).spec
    assert dataset.recover_environment().spec.max_episode_steps == 7


# --- what must be installed ---


def test_missing_packages_are_named(buffer, monkeypatch):
    for module, arguments in (("minari", {}), ("h5py", {}), ("pyarrow", {"data_format": "arrow"}), ("PIL", {})):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=r"pip install 'gym-replay\[minari\]'"):
                export_minari(buffer, "x-v0", **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(minari, "__version__", "0.5.3")
        with pytest.raises(MissingExtraError, match=r"0\.5\.3.*JPEG.*--upgrade"):
            export_minari(buffer, "x-v0")


@pytest.mark.parametrize("arguments", [{"data_format": "csv"}, {"on_unsupported": "ignore"}])
def test_wrong_arguments(buffer, arguments):
    with pytest.raises(FieldError, match="expected one of"):
        export_minari(buffer, "x-v0", **arguments)


def test_the_functions_are_exported():
    assert gym_replay.export_minari is export_minari
    assert gym_replay.import_minari is import_minari


@pytest.mark.parametrize("data_format", FORMATS)
def test_one_number_a_step_is_a_single_number(tmp_path, data_format):
    """In the dataset; the buffer that is made of it again has the fields that were exported."""
    fields = {"observation": Field("float32", (2,), state=True), "action": "int64", "reward": Field("float64", (1,))}
    fields |= {name: Field("bool", (1,)) for name in ("terminated", "truncated")}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        ends = np.array([[False], [True]])
        buffer.store_episode(
            observation=np.ones((3, 2)), action=[0, 1], reward=[[0.5], [1.5]], terminated=ends, truncated=ends
        )
        (written,) = export_minari(buffer, "x-v0", data_format=data_format)
        assert same(written.rewards, np.array([0.5, 1.5]))
        assert same(written.terminations, ends[:, 0])
        assert same(written.truncations, ends[:, 0])
        with import_minari("x-v0", tmp_path / "b") as back:
            assert_same_buffer(buffer, back)
