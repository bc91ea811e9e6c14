import io
import json
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from collecting_helpers import (
    Drawing,
    Hesitant,
    Remembering,
    Uneven,
    Wander,
    assert_infos,
    brightest,
    facts_of,
    lean,
    seeds_of,
    walk,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gym_replay
from gym_replay import (
    BufferLockedError,
    ConfigMismatchError,
    CorruptBufferError,
    Field,
    FieldError,
    GymReplayError,
    RecordToBuffer,
    ReplayBuffer,
    check_buffer,
    collect,
    replay,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # AsyncVectorEnv, since Python 3.12


def wander(folder, *, policy=brightest, env=Wander, **options):
    return collect(env, folder, policy=policy, progress=False, **options)


CASES = {
    "images, random": (Wander, "random", {"num": 12, "record_info": True}),
    "images, a batched function": (Wander, brightest, {"num": 12}),
    "images, a policy that draws": (Wander, Drawing(), {"num": 12}),
    "images, a policy that remembers": (Wander, Remembering(), {"num": 12, "options": {"mark": 3}}),
    "CartPole, random": ("CartPole-v1", "random", {"num": 12}),
    "CartPole, a batched function": ("CartPole-v1", lean, {"num": 6, "max_episode_steps": 40}),
    "FrozenLake, random": ("FrozenLake-v1", "random", {"num": 12}),
    "FrozenLake, a batched function": ("FrozenLake-v1", walk, {"num": 12, "env_kwargs": {"map_name": "8x8"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_episodes_are_the_same_however_many_are_played_at_once(tmp_path, case):
    env, policy, options = CASES[case]
    number = options["num"]
    options = {name: value for name, value in options.items() if name != "num"}
    found = []
    for num_envs, vectorization in ((1, "sync"), (2, "sync"), (5, "sync"), (3, "async"), (number + 3, "sync")):
        folder = tmp_path / f"{num_envs}"
        buffer = collect(
            env,
            folder,
            policy=policy if isinstance(policy, str) or not hasattr(policy, "reset") else type(policy)(),
            episodes=number,
            num_envs=num_envs,
            vectorization=vectorization,
            progress=False,
            **options,
        )
        found.append(facts_of(buffer))
        assert check_buffer(folder).ok
    assert sorted(found[0]) == list(range(number))
    assert all(other == found[0] for other in found[1:])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1 << 40),
    first=st.integers(1, 6),
    second=st.integers(1, 6),
    part=st.integers(1, 12),
    total=st.sampled_from([{"episodes": 12}, {"steps": 60}, {"episodes": 9, "steps": 45}]),
    keeps=st.booleans(),
)
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path_factory, seed, first, second, part, total, keeps):
    tmp_path = tmp_path_factory.mktemp("parts")
    options = {"seed": seed, "keep": _keep_odd if keeps else None}
    expected = facts_of(wander(tmp_path / "whole", policy="random", **total, **options))
    wander(tmp_path / "parts", policy="random", episodes=part, num_envs=first, **options).close()
    found = facts_of(wander(tmp_path / "parts", policy="random", num_envs=second, **total, **options))
    if len(expected) >= part:
        assert found == expected
    else:  # nothing that was asked for is deleted
        assert {number: facts for number, facts in found.items() if number in expected} == expected
        assert len(found) == part


def _keep_odd(episode):
    return int(episode["action"][:, 0].sum()) % 2 == 1


class _Ageing(Wander):
    """Carries something from one episode to the next that no seed resets."""

    age = 0

    def reset(self, *, seed=None, options=None):
        self.age += 1
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, *others = super().step(action)
        return observation, reward + 100 * self.age, *others


def test_environments_that_carry_something_along_are_made_anew(tmp_path):
    expected = facts_of(wander(tmp_path / "young", env=_Ageing, episodes=6, fresh_envs=True))
    together = wander(tmp_path / "together", env=_Ageing, episodes=6, fresh_envs=True, num_envs=4)
    assert facts_of(together) == expected
    assert facts_of(wander(tmp_path / "old", env=_Ageing, episodes=6)) != expected
    by_id = collect("FrozenLake-v1", tmp_path / "id", episodes=3, num_envs=2, fresh_envs=True, progress=False)
    assert by_id.make_env().spec.id == "FrozenLake-v1"
    assert all(replay(by_id, place).equal for place in range(3))
    with pytest.raises(ConfigMismatchError, match="fresh_envs"):
        wander(tmp_path / "young", env=_Ageing, episodes=7)


def test_long_episodes_are_not_rarer_for_being_long(tmp_path):
    expected = facts_of(collect(Uneven, tmp_path / "1", episodes=40, seed=3, progress=False))
    found = facts_of(collect(Uneven, tmp_path / "8", episodes=40, seed=3, num_envs=8, progress=False))
    assert found == expected
    lengths = [length for length, _, _ in found.values()]
    # Of the draws themselves, not of who came first.
    drawn = [np.random.default_rng(seeds_of(3, number)[0]).random() < 0.2 for number in range(40)]
    assert [length == 60 for length in lengths] == [drawn[number] for number in found]
    assert 0 < sum(drawn) < 40


@pytest.mark.parametrize("num_envs", [1, 4])
def test_steps_end_with_the_episode_that_reaches_them(tmp_path, num_envs):
    buffer = collect(Uneven, tmp_path, steps=200, num_envs=num_envs, progress=False)
    lengths = {number: length for number, (length, _, _) in facts_of(buffer).items()}
    assert sorted(lengths) == list(range(len(lengths)))
    total = sum(lengths.values())
    assert total >= 200 > total - lengths[len(lengths) - 1]


def test_a_run_that_was_killed_before_it_deleted_what_is_not_needed(tmp_path, monkeypatch):
    options = {"steps": 150, "num_envs": 6, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(ReplayBuffer, "delete", lambda buffer, episodes: None)
        too_many = facts_of(collect(Uneven, tmp_path / "parts", seed=2, **options))
    expected = facts_of(collect(Uneven, tmp_path / "whole", seed=2, **{**options, "num_envs": 1}))
    assert expected.keys() < too_many.keys()
    assert facts_of(collect(Uneven, tmp_path / "parts", seed=2, **options)) == expected


def test_seeds_options_and_replay(tmp_path):
    buffer = collect("FrozenLake-v1", tmp_path, episodes=4, seed=9, num_envs=2, progress=False)
    for place, episode in enumerate(buffer):
        assert episode.meta["episode_seed"] == seeds_of(9, int(episode.meta["collect_index"]))[0]
        assert replay(buffer, place).equal
    assert not buffer.read_only
    assert "collect_index" not in next(iter(buffer.dataloader(2, timestep_level=True)))
    RecordToBuffer(gym.make("FrozenLake-v1"), tmp_path / "free").close()
    with ReplayBuffer.from_folder(tmp_path) as other:  # the lock is free
        other.acquire()


def test_totals_that_are_there_already(tmp_path):
    first = facts_of(wander(tmp_path, episodes=6))
    assert facts_of(wander(tmp_path, episodes=6)) == first
    assert facts_of(wander(tmp_path, episodes=2)) == first
    assert facts_of(wander(tmp_path, steps=3)) == first
    more = facts_of(wander(tmp_path, episodes=8, num_envs=3))
    assert len(more) == 8
    assert {number: more[number] for number in first} == first


def test_what_was_deleted_is_played_again(tmp_path):
    buffer = wander(tmp_path, episodes=6)
    expected = facts_of(buffer)
    buffer.delete([1, 4])
    buffer.close()
    assert facts_of(wander(tmp_path, episodes=6, num_envs=2)) == expected


# --- keep ---


def test_keep(tmp_path):
    everything = facts_of(wander(tmp_path / "all", episodes=40))
    seen = []

    def keep(episode):
        seen.append(episode.meta["collect_index"])
        return len(episode) > 4

    buffer = wander(tmp_path / "kept", episodes=10, num_envs=3, keep=keep)
    found = facts_of(buffer)
    expected = [number for number, (length, _, _) in sorted(everything.items()) if length > 4][:10]
    assert sorted(found) == expected
    assert {number: everything[number] for number in found} == found
    # What was not kept is not played again.
    played = set(seen)
    seen.clear()
    wander(tmp_path / "kept", episodes=12, keep=keep)
    assert not played & set(seen) or played & set(seen) <= {number for number in played if number > max(expected)}


def test_on_episode_sets_meta_fields_and_discards(tmp_path):
    def judge(episode):
        return {"short": True} if len(episode) < 4 else episode.episode_return > 0

    buffer = wander(tmp_path, episodes=8, num_envs=2, on_episode=judge, meta_fields={"short": "bool"})
    assert len(buffer) == 8
    for episode in buffer:
        assert bool(episode.meta["short"]) == (len(episode) < 4)
        assert episode.meta["short"] or episode.meta["episode_return"] > 0


@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_episode_that_could_not_be_judged_is_played_again(tmp_path, num_envs):
    expected = facts_of(wander(tmp_path / "whole", episodes=6, keep=_keep_long))
    calls = []

    def stumbling(episode):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("no answer")
        return _keep_long(episode)

    stumbling.__qualname__, stumbling.__module__ = _keep_long.__qualname__, _keep_long.__module__
    with pytest.raises(OSError, match="no answer"):
        wander(tmp_path / "parts", episodes=6, num_envs=num_envs, keep=stumbling)
    assert facts_of(wander(tmp_path / "parts", episodes=6, num_envs=num_envs, keep=stumbling)) == expected


def _keep_long(episode):
    return len(episode) > 2


# --- what ends a run early ---


@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_exception_in_the_environment(tmp_path, num_envs):
    expected = facts_of(wander(tmp_path / "whole", episodes=30))
    with pytest.raises(RuntimeError, match="gave way"):
        wander(tmp_path / "parts", episodes=30, num_envs=num_envs, env=_Fragile)
    with ReplayBuffer.from_folder(tmp_path / "parts") as buffer:
        buffer.acquire()  # the lock is free
        there = facts_of(buffer)
    assert 0 < len(there) < 30
    assert {number: expected[number] for number in there} == there
    _Fragile.holds = True
    try:
        assert facts_of(wander(tmp_path / "parts", episodes=30, num_envs=num_envs, env=_Fragile)) == expected
    finally:
        _Fragile.holds = False


class _Fragile(Wander):
    holds = False

    def __init__(self):
        super().__init__(fail_at=None if self.holds else 20)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_an_exception_in_the_policy(tmp_path, num_envs):
    left = [25]

    def failing(observation):
        left[0] -= 1
        if left[0] == 0:
            raise ZeroDivisionError
        return brightest(observation)

    with pytest.raises(ZeroDivisionError):
        wander(tmp_path / "parts", episodes=30, num_envs=num_envs, policy=failing, policy_name="brightest")
    assert 0 < len(ReplayBuffer.from_folder(tmp_path / "parts", read_only=True)) < 30
    found = facts_of(wander(tmp_path / "parts", episodes=30, num_envs=num_envs, policy_name="brightest"))
    assert found == facts_of(wander(tmp_path / "whole", episodes=30))


# --- the folder is of something else ---


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, "seed: stored 0, passed 1"),
        ({"policy": "random"}, 'policy: stored "collecting_helpers.brightest", passed "random"'),
        ({"env_kwargs": {"longest": 5}}, 'env_kwargs: stored {}, passed {"longest": 5}'),
        ({"max_episode_steps": 3}, "max_episode_steps: stored null, passed 3"),
        ({"options": {"mark": 1}}, "options"),
        ({"deterministic": False}, "deterministic"),
        ({"keep": _keep_long}, "keep"),
        ({"policy_name": "another one"}, "another one"),
    ],
)
def test_other_arguments_are_refused(tmp_path, options, named):
    before = facts_of(wander(tmp_path, episodes=2))
    with pytest.raises(ConfigMismatchError) as caught:
        wander(tmp_path, episodes=3, **options)
    assert named in str(caught.value)
    assert facts_of(ReplayBuffer.from_folder(tmp_path, read_only=True)) == before
    assert len(wander(tmp_path, episodes=3, overwrite=True, **options)) == 3


def test_all_differences_are_listed(tmp_path):
    wander(tmp_path, episodes=1).close()
    with pytest.raises(ConfigMismatchError, match=r"seed.*deterministic|deterministic.*seed"):
        wander(tmp_path, episodes=1, seed=2, deterministic=False)


def test_another_environment_is_refused(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    with pytest.raises(ConfigMismatchError, match=r"recorded from 'CartPole-v1', this environment is 'FrozenLake-v1'"):
        collect("FrozenLake-v1", tmp_path, episodes=2, progress=False)
    with pytest.raises(ConfigMismatchError, match="CartPole-v1"):
        collect(gym.spec("CartPole-v0"), tmp_path, episodes=2, progress=False)


def test_a_buffer_that_was_recorded_otherwise_is_refused(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "by hand")
    env.reset(seed=0)
    env.step(0)
    env.close()
    with pytest.raises(ConfigMismatchError, match="collect"):
        collect("CartPole-v1", tmp_path / "by hand", episodes=2, progress=False)
    with ReplayBuffer(tmp_path / "stored", fields={"x": "int"}) as buffer:
        buffer.store_episode(x=[1])
    with pytest.raises(ConfigMismatchError):
        collect("CartPole-v1", tmp_path / "stored", episodes=2, progress=False)


def test_a_recorder_may_append_but_collect_then_stops(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=2, progress=False).close()
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    env.reset(seed=0)
    env.step(0)
    env.close()
    assert env.buffer.episode(-1).meta["collect_index"] == -1
    with pytest.raises(ConfigMismatchError, match="1 of its episodes"):
        collect("CartPole-v1", tmp_path, episodes=4, progress=False)


def test_somebody_else_is_writing(tmp_path):
    with collect("CartPole-v1", tmp_path, episodes=2, progress=False) as buffer:
        buffer.acquire()
        with pytest.raises(BufferLockedError):
            collect("CartPole-v1", tmp_path, episodes=4, progress=False)


def test_an_episode_that_is_there_twice(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=2, progress=False).close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.update(collect_index=np.array([1, 1]))
    with pytest.raises(CorruptBufferError, match="collect_index 1 is there twice"):
        collect("CartPole-v1", tmp_path, episodes=4, progress=False)


JOURNALS = [
    b"",
    b"[]",
    b'{"format": "something else"}',
    b"[" * 100_000,
    b'{"format": "gym_replay collection", "version": 1}',
    b'{"format": "gym_replay collection", "version": 2}',
]


@pytest.mark.parametrize("content", JOURNALS)
def test_a_damaged_note_is_named(tmp_path, content):
    collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    (tmp_path / "collect.json").write_bytes(content)
    with pytest.raises(CorruptBufferError, match=r"collect\.json"):
        collect("CartPole-v1", tmp_path, episodes=2, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        {"goals": 3},
        {"goals": [{"episodes": 0}]},
        {"goals": [{"episodes": True}]},
        {"discarded": 3},
        {"discarded": [-3]},
        {"discarded": ["a"]},
        {"discarded": [True]},
        {"discarded": [[1, 5]]},
        {"discarded": [0] * ((1 << 19) + 1)},
        {"goals": [{}] * 1001},
        {"identity": []},
        {"uuid": 0},
    ],
)
def test_a_note_from_a_stranger(tmp_path, change):
    collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    note = tmp_path / "collect.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), **change}))
    with pytest.raises(CorruptBufferError, match=r"collect\.json"):
        collect("CartPole-v1", tmp_path, episodes=2, progress=False)


def test_a_note_behind_a_link_is_not_read(tmp_path):
    collect("CartPole-v1", tmp_path / "data", episodes=1, progress=False).close()
    note = tmp_path / "data" / "collect.json"
    note.rename(tmp_path / "elsewhere.json")
    note.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CorruptBufferError, match="link"):
        collect("CartPole-v1", tmp_path / "data", episodes=2, progress=False)


def test_without_the_note_nothing_is_added(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    (tmp_path / "collect.json").unlink()
    with pytest.raises(ConfigMismatchError, match="nothing says how"):
        collect("CartPole-v1", tmp_path, episodes=2, progress=False)


def test_the_note_of_a_buffer_that_was_replaced_means_nothing(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=3, seed=5, progress=False).close()
    RecordToBuffer(gym.make("CartPole-v1"), tmp_path, overwrite=True).close()
    with pytest.raises(ConfigMismatchError, match="not made by collect"):
        collect("CartPole-v1", tmp_path, episodes=2, progress=False)


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({}, FieldError, "episodes"),
        ({"episodes": 0}, FieldError, "episodes"),
        ({"steps": 1.5}, FieldError, "steps"),
        ({"episodes": 1, "num_envs": 0}, FieldError, "num_envs"),
        ({"episodes": 1, "seed": -1}, FieldError, "seed"),
        ({"episodes": 1, "vectorization": "threads"}, FieldError, "threads"),
        ({"episodes": 1, "policy": "nonsense"}, FieldError, "nonsense"),
        ({"episodes": 1, "policy": 3}, FieldError, "int"),
        ({"episodes": 1, "policy": "os:nonsense"}, FieldError, "nonsense"),
        ({"episodes": 1, "policy": "sb3:PPO:missing.zip"}, FieldError, "missing"),
        ({"episodes": 1, "policy": "sb3:PPO"}, FieldError, "sb3:ALGO:PATH"),
        ({"episodes": 1, "keep": True}, FieldError, "keep"),
        ({"episodes": 1, "vectorization": "native", "fresh_envs": True}, FieldError, "fresh_envs"),
        ({"episodes": 1, "engine": "dask"}, FieldError, "dask"),
        ({"episodes": 1, "num_workers": 2}, FieldError, "num_workers"),
        ({"episodes": 1, "engine": "ray", "overwrite": True}, FieldError, "overwrite"),
        ({"episodes": 1, "meta_fields": {"episode_return": "float"}}, FieldError, "episode_return"),
        ({"episodes": 1, "meta_fields": {"collect_index": "int"}}, FieldError, "collect_index"),
        ({"episodes": 1, "env_kwargs": {"nonsense": 1}}, TypeError, "nonsense"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, options, error, named):
    with pytest.raises(error, match=named):
        collect("CartPole-v1", tmp_path / "data", progress=False, **options)
    assert not (tmp_path / "data").exists()


def test_what_is_no_environment(tmp_path):
    env = gym.make("CartPole-v1")
    with pytest.raises(TypeError, match="a function that makes it"):
        collect(env, tmp_path, episodes=1)
    with pytest.raises(TypeError, match=r"expected it to make a gymnasium\.Env"):
        collect(lambda: "no environment", tmp_path, episodes=1)
    with pytest.raises(gym.error.Error):
        collect("Nonsense-v0", tmp_path, episodes=1)


def test_specs_and_functions(tmp_path):
    spec = gym.spec("CartPole-v1")
    by_id = collect("CartPole-v1", tmp_path / "id", episodes=3, max_episode_steps=9, progress=False)
    by_spec = collect(spec, tmp_path / "spec", episodes=3, max_episode_steps=9, num_envs=2, progress=False)
    by_function = collect(
        lambda **kwargs: gym.make("CartPole-v1", **kwargs).unwrapped,
        tmp_path / "function",
        episodes=3,
        max_episode_steps=9,
        progress=False,
    )
    assert facts_of(by_id) == facts_of(by_spec) == facts_of(by_function)
    assert by_spec.env_spec.max_episode_steps == 9
    assert by_spec.make_env().spec.id == "CartPole-v1"
    assert [wrapper.name for wrapper in by_spec.env_spec.additional_wrappers] == []


def test_policies_by_name(tmp_path):
    by_name = wander(tmp_path / "name", policy="collecting_helpers:brightest", episodes=3)
    assert facts_of(by_name) == facts_of(wander(tmp_path / "function", episodes=3))
    of_class = wander(tmp_path / "class", policy="collecting_helpers:Drawing", episodes=3, num_envs=2)
    assert facts_of(of_class) == facts_of(wander(tmp_path / "object", policy=Drawing(), episodes=3))


def test_a_policy_of_single_observations_plays_in_several_environments(tmp_path):
    def single(observation):
        assert observation.shape == (4, 3, 3)
        return brightest(observation)

    expected = facts_of(wander(tmp_path / "1", episodes=6))
    assert facts_of(wander(tmp_path / "2", policy=single, episodes=6, num_envs=3, batched=False)) == expected
    expected = facts_of(wander(tmp_path / "3", policy=Remembering(), episodes=6))
    assert facts_of(wander(tmp_path / "4", policy=Remembering(), episodes=6, num_envs=3, batched=False)) == expected


class _Annotating(Remembering):
    def extra(self):
        return {"acted": self.acted if len(self.acted) > 1 else self.acted[0]}


@pytest.mark.parametrize(("num_envs", "batched"), [(1, None), (3, None), (3, False)])
def test_extra_fields(tmp_path, num_envs, batched):
    buffer = wander(
        tmp_path,
        policy=_Annotating(),
        episodes=6,
        num_envs=num_envs,
        batched=batched,
        extra_fields={"acted": Field("int64")},
    )
    assert len(buffer) == 6
    for episode in buffer:
        assert episode["acted"].tolist() == list(range(1, len(episode) + 1))


def test_collect_is_a_function_after_its_modules_are_imported(tmp_path):
    collect("CartPole-v1", tmp_path, episodes=1, progress=False)
    assert gym_replay.collect is collect


# --- native ---


@pytest.mark.parametrize("goal", [{"episodes": 50}, {"steps": 700}])
def test_native(tmp_path, goal):
    options = {"vectorization": "native", "num_envs": 4, "progress": False, **goal}
    with pytest.warns(UserWarning, match="gives up"):
        buffer = collect("CartPole-v1", tmp_path, policy=lean, max_episode_steps=30, **options)
    found = facts_of(buffer)
    assert sorted(found) == list(range(len(found)))
    assert goal.get("episodes", len(found)) == len(found)
    for episode in buffer:
        assert episode.meta["env_index"] == episode.meta["collect_index"] % 4
        assert (episode["action"] == lean(episode["observation"][:-1])).all()
        assert len(episode) == 30 or episode["terminated"][-1]
    with pytest.warns(UserWarning, match="gives up"):
        again = collect("CartPole-v1", tmp_path, policy=lean, max_episode_steps=30, **{**options, "episodes": 60})
    assert {number: facts for number, facts in facts_of(again).items() if number in found} == found
    with pytest.raises(ConfigMismatchError, match="4 environments"), pytest.warns(UserWarning, match="gives up"):
        collect("CartPole-v1", tmp_path, policy=lean, max_episode_steps=30, **{**options, "num_envs": 5})


def test_native_random_policies_are_seeded_for_each_episode(tmp_path):
    with pytest.warns(UserWarning, match="gives up"):
        buffer = collect("CartPole-v1", tmp_path, episodes=9, vectorization="native", num_envs=3, progress=False)
    space = gym.spaces.Discrete(2)
    for episode in buffer:
        space.seed(seeds_of(0, int(episode.meta["collect_index"]))[1])
        assert episode["action"].tolist() == [space.sample() for _ in range(len(episode))]


def test_there_is_no_native_one(tmp_path):
    with pytest.raises(FieldError, match="native"), pytest.warns(UserWarning, match="gives up"):
        collect("FrozenLake-v1", tmp_path, episodes=1, num_envs=2, vectorization="native")


@pytest.mark.parametrize("mode", [gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP])
def test_native_ones_that_a_function_makes(tmp_path, mode):
    def make(num_envs):
        return gym.vector.SyncVectorEnv([Wander] * num_envs, autoreset_mode=mode)

    with pytest.warns(UserWarning, match="gives up"):
        buffer = wander(tmp_path, env=make, episodes=20, num_envs=3, vectorization="native")
    assert sorted(facts_of(buffer)) == list(range(20))
    for episode in buffer:
        assert (episode["action"] == brightest(episode["observation"][:-1])).all()
        assert episode.meta["env_index"] == episode.meta["collect_index"] % 3


def test_native_ones_that_do_not_reset_themselves_are_refused(tmp_path):
    def make(num_envs):
        return gym.vector.SyncVectorEnv([Wander] * num_envs, autoreset_mode=gym.vector.AutoresetMode.DISABLED)

    with pytest.raises(FieldError, match="next-step"), pytest.warns(UserWarning, match="gives up"):
        wander(tmp_path, env=make, episodes=2, num_envs=2, vectorization="native")


def test_an_older_gymnasium_plays_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.delattr(gym.vector, "AutoresetMode")
    with pytest.raises(GymReplayError, match="pip install -U gymnasium"):
        wander(tmp_path / "several", episodes=2, num_envs=2)
    assert len(wander(tmp_path / "one", episodes=2)) == 2


# --- the bar ---


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", _Terminal())
    collect("CartPole-v1", tmp_path, episodes=3)
    shown = sys.stderr.getvalue().rstrip().split("\r")[-1]
    assert re.fullmatch(r"100%\|.{10,}\| 3/3 episodes 00:00, [\d.]+k? steps/s, return [\d.]+, [\d.]+[kM]?B", shown), (
        shown
    )
    assert len(shown) <= 80
    monkeypatch.setattr("sys.stderr", redirected := io.StringIO())
    collect("CartPole-v1", tmp_path, episodes=4)
    collect("CartPole-v1", tmp_path, episodes=5, progress=False)
    assert redirected.getvalue() == ""


@pytest.mark.parametrize("later", [1, 12, 30])
def test_infos_that_become_fractions(tmp_path, later):
    """Also in a collection that goes on in a folder of integers."""
    for episodes in (1, 4, later):
        buffer = collect(Hesitant, tmp_path, policy="random", episodes=episodes, record_info=True, progress=False)
        assert_infos(buffer)
    assert check_buffer(tmp_path, progress=False).ok
