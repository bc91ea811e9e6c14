"""Parallel environments: each agent's stream is episodes of its own, whenever it comes and however it goes."""

import copy
import pickle
import subprocess
import sys
import tempfile
import warnings

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pettingzoo")

from pettingzoo.utils import aec_to_parallel
from pettingzoo.utils.wrappers import MultiEpisodeParallelEnv
from wrappers.scripted import MEMORY, full_disk

import gym_replay
from gym_replay import (
    BufferFullError,
    ConfigMismatchError,
    EpisodeStateError,
    FieldError,
    ReplayBuffer,
    StorageError,
    trajectory_loader,
)
from gym_replay.wrappers import vector
from gym_replay.wrappers.parallel import RecordToBuffer

from .matches import ByHand, Stay, Table, assert_streams, play

with warnings.catch_warnings():  # newer ones have a registry, older ones have none
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.classic import rps_v2
    from pettingzoo.test import parallel_api_test

ENDS = ["terminated", "truncated", "both"]
TWO = {"a_0": Stay(0, 3), "a_1": Stay(0, 5, "truncated")}


@st.composite
def stays(draw):
    """The stays of one agent: none of them overlap, and one may begin in the step after the one before."""
    found, at = [], draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, 2))):
        end = at + draw(st.integers(1, 5))
        found.append(Stay(at, end, draw(st.sampled_from(ENDS)), draw(st.booleans())))
        at = end + draw(st.integers(1, 3))
    return found


@given(
    table=st.lists(stays(), min_size=1, max_size=4),
    narrow=st.sets(st.integers(0, 3)),
    limit=st.sampled_from([2, 100]),
    matches=st.integers(1, 3),
)
@settings(max_examples=30)
def test_streams_are_those_that_are_kept_by_hand(table, narrow, limit, matches):
    agents = {f"agent_{number}": each for number, each in enumerate(table)}
    hand = ByHand(Table(agents, narrow={f"agent_{number}" for number in narrow}))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a step without a running episode")  # where nobody is there at the reset
        env = RecordToBuffer(hand, folder, record_info=True)
        play(env, matches, limit=limit)
        env.close()
        hand.cut()
        assert_streams(
            env.buffers, hand.ended, infos=["t"] if any(b.num_episodes for b in env.buffers.values()) else []
        )
        for buffer in env.buffers.values():
            buffer.close()


def test_what_comes_out_is_a_parallel_environment(tmp_path):
    env = RecordToBuffer(rps_v2.parallel_env(max_cycles=5), tmp_path)
    parallel_api_test(env, num_cycles=20)
    assert env.max_num_agents == 2
    assert str(env) == "rps_v2"
    assert env.unwrapped is env.env.unwrapped
    env.close()
    assert env.buffer.num_episodes > 2


def test_aec_environments_by_conversion(tmp_path):
    found = []
    for number, made in enumerate([rps_v2.parallel_env(max_cycles=6), aec_to_parallel(rps_v2.env(max_cycles=6))]):
        hand = ByHand(made)
        env = RecordToBuffer(hand, tmp_path / str(number))
        play(env, 3)
        env.close()
        assert_streams(env.buffers, hand.ended)
        found.append([episode["observation"].tolist() for episode in env.buffer])
    assert found[0] == found[1]
    with pytest.raises(TypeError, match="aec_to_parallel"):
        RecordToBuffer(rps_v2.env(), tmp_path / "aec")


def test_agent_and_match(tmp_path):
    env = RecordToBuffer(Table(TWO), tmp_path)
    play(env, 2, seed=7)
    env.close()
    again = RecordToBuffer(Table(TWO), tmp_path)  # appends
    play(again, 1)
    again.close()
    buffer = again.buffer
    metas = [episode.meta for episode in buffer]
    assert [meta["agent"] for meta in metas] == ["a_0", "a_1"] * 3
    assert [int(meta["env_index"]) for meta in metas] == [0, 1] * 3
    assert [int(meta["episode_seed"]) for meta in metas] == [7, 7, 8, 8, 0, 0]
    matches = [meta["match"] for meta in metas]
    assert matches[0::2] == matches[1::2]
    assert len(set(matches)) == 3
    (batch,) = trajectory_loader(buffer, 8, filter_meta={"agent": "a_1"})
    assert batch["_lens"].tolist() == [5, 5, 5]
    assert "agent" not in batch  # as the recorder's own meta fields are not, unless they are asked for
    (batch,) = trajectory_loader(buffer, 8, episodes=f"match == '{matches[0]}'")
    assert batch["_lens"].tolist() == [3, 5]


def test_each_pair_of_spaces_has_a_folder(tmp_path):
    agents = {"wolf_0": Stay(0, 3), "sheep_0": Stay(0, 4), "wolf_1": Stay(1, 2), "sheep_1": Stay(0, 4)}
    hand = ByHand(Table(agents, narrow={"sheep_0", "sheep_1"}))
    env = RecordToBuffer(hand, tmp_path / "new" / "data")
    play(env, 2)
    with pytest.raises(FieldError, match=r"several buffers.*wolf.*sheep"):
        _ = env.buffer
    env.close()
    assert_streams(env.buffers, hand.ended)
    folders = {agent: buffer.folder.name for agent, buffer in env.buffers.items()}
    assert folders == {"wolf_0": "wolf", "sheep_0": "sheep", "wolf_1": "wolf", "sheep_1": "sheep"}
    matches = [{episode.meta["match"] for episode in env.buffers[agent]} for agent in ("wolf_0", "sheep_0")]
    assert matches[0] == matches[1]
    mixed = RecordToBuffer(Table({"a_0": Stay(0, 1), "a_1": Stay(0, 1)}, narrow={"a_1"}), tmp_path / "mixed")
    assert [buffer.folder.name for buffer in mixed.buffers.values()] == ["a_0", "a_1"]
    mixed.close()
    with pytest.raises(FieldError, match="2 different pairs of spaces"):
        RecordToBuffer(Table(agents, narrow={"sheep_0"}), ReplayBuffer(tmp_path / "b", fields={"x": "int"}))
    RecordToBuffer(Table(TWO), tmp_path / "one").close()
    with pytest.raises(ConfigMismatchError, match="is a buffer"):
        RecordToBuffer(Table(TWO, narrow={"a_1"}), tmp_path / "one")


def test_a_buffer_that_is_passed_in_stays_open(tmp_path):
    env = RecordToBuffer(Table(TWO), tmp_path)
    env.close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        env = RecordToBuffer(Table(TWO), buffer)
        play(env)
        env.close()
        assert len(buffer) == 2


@pytest.mark.parametrize("how", ["left", "vanished"])
def test_who_leaves_without_a_flag_is_cut(tmp_path, how):
    hand = ByHand(Table({"a": Stay(0, 3, how), "b": Stay(0, 5), "c": Stay(1, 3, how)}))
    env = RecordToBuffer(hand, tmp_path)
    with pytest.warns(UserWarning, match=r"agent 'a' left agents without having terminated or been truncated"):
        play(env, 2)
    env.close()
    assert_streams(env.buffers, hand.ended)
    assert sum(not episode.complete for episode in env.buffer) == 4


def test_a_match_that_is_cut(tmp_path):
    hand = ByHand(Table(TWO))
    env = RecordToBuffer(hand, tmp_path / "kept")
    play(env, 3, limit=2)
    env.close()
    hand.cut()
    assert_streams(env.buffers, hand.ended)
    assert [episode.complete for episode in env.buffer] == [False] * 6
    env = RecordToBuffer(Table(TWO), tmp_path / "not", on_incomplete="discard")
    play(env, 3, limit=4)
    env.close()
    assert [episode.meta["agent"] for episode in env.buffer] == ["a_0"] * 3


def test_annotations_by_agent(tmp_path):
    env = RecordToBuffer(
        Table(TWO),
        tmp_path,
        meta_fields={"team": "str", "skill": "float32"},
        extra_fields={"note": "int", "seen": ("float32", 2)},
        on_episode=lambda episode: {"skill": -1.0} if episode.meta["agent"] == "a_1" else None,
    )
    env.reset()
    env.annotate(team={"a_0": "red", "a_1": "blue"}, skill=0.5)
    env.annotate(skill={"a_0": 0.25})
    env.annotate_step(note={"a_1": 3}, seen=[1, 2])
    for t in range(5):
        env.step(dict.fromkeys(env.agents, t % 5))
        env.annotate_step(note=t) if env.agents else None
    env.close()
    first, second = env.buffer
    assert (first.meta["team"], second.meta["team"]) == ("red", "blue")
    assert (first.meta["skill"], second.meta["skill"]) == (0.25, -1.0)
    assert first["note"].tolist() == [0, 0, 1]
    assert second["note"].tolist() == [3, 0, 1, 2, 3]
    assert first["seen"].tolist() == [[1, 2], [0, 0], [0, 0]]
    env = RecordToBuffer(Table(TWO), tmp_path / "other", meta_fields={"team": "str"})
    with pytest.raises(EpisodeStateError, match="no episode is running"):
        env.annotate(team="red")
    env.reset()
    for name in ("agent", "match", "episode_seed"):
        with pytest.raises(FieldError, match="set by the recorder itself"):
            env.annotate(**{name: "x"})
    with pytest.raises(FieldError, match="unknown agent 'nobody'"):
        env.annotate(team={"nobody": "red"})
    env.close()


def test_an_action_that_is_missing_or_wrong_changes_nothing(tmp_path):
    hand = ByHand(Table(TWO))
    env = RecordToBuffer(hand, tmp_path)
    env.reset()
    with pytest.raises(FieldError, match="an action of each agent that is there, got none of 'a_1'"):
        env.step({"a_0": 1})
    with pytest.raises(FieldError, match=r"agent 'a_1': .*action"):
        env.step({"a_0": 1, "a_1": np.zeros(3)})
    with pytest.raises(FieldError, match="actions: expected a dict by agent"):
        env.step([1, 2])
    while env.agents:
        env.step(dict.fromkeys(env.agents, 2))
    env.close()
    assert_streams(env.buffers, hand.ended)


def without(place):
    def answer(env, results):
        if env.t == 2:
            del results[place]["a_1"]
        return results

    return answer


def wrong(place, value):
    def answer(env, results):
        if env.t == 2:
            results[place]["a_1"] = value
        return results

    return answer


def raising(env, results):
    if env.t == 2:
        raise ArithmeticError("in the middle")
    return results


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (without(0), FieldError, "got none of agent 'a_1'"),
        (without(1), FieldError, "a reward of each agent that is there, got none of 'a_1'"),
        (without(2), FieldError, "'terminated' of each agent that is there, got none of 'a_1'"),
        (wrong(0, np.zeros(3)), FieldError, "agent 'a_1': field 'observation'"),
        (wrong(1, None), FieldError, "reward"),
        (wrong(3, 1), FieldError, "expected a bool"),
        (lambda env, results: results[:4] if env.t == 2 else results, FieldError, "4 values"),
        (lambda env, results: (*results[:4], []) if env.t == 2 else results, FieldError, "infos: expected a dict"),
        (raising, ArithmeticError, "in the middle"),
    ],
)
def test_a_step_that_cannot_be_stored_cuts_all_before_it(tmp_path, answer, error, message):
    env = RecordToBuffer(Table(TWO, answer=answer), tmp_path)
    env.reset()
    actions = {"a_0": 1, "a_1": 1}
    env.step(actions)
    with pytest.raises(error, match=message):
        env.step(actions)
    if error is ArithmeticError:
        env.env.answer = None
    with pytest.warns(UserWarning, match="a step without a running episode"):
        env.step(actions)
    env.env.answer = None
    play(env)
    env.close()
    assert [(len(episode), episode.complete) for episode in env.buffer] == [(1, False)] * 2 + [(3, True), (5, True)]


def test_who_nobody_knew_is_refused(tmp_path):
    env = RecordToBuffer(Table(TWO), tmp_path)
    env.env.stays["late"] = [Stay(2, 4)]
    env.env.observation_spaces["late"], env.env.action_spaces["late"] = (
        env.observation_space("a_0"),
        gym.spaces.Discrete(5),
    )
    env.env.possible_agents = [*env.env.possible_agents, "late"]
    with pytest.raises(FieldError, match="agent 'late' is there, and possible_agents did not have it"):
        play(env)
    env.close()
    assert [len(episode) for episode in env.buffer] == [1, 1]


def test_what_is_no_parallel_environment(tmp_path):
    class Nobody(Table):
        possible_agents = property(lambda self: [], lambda self, value: None)

    with pytest.raises(FieldError, match="expected possible_agents"):
        RecordToBuffer(Nobody({}), tmp_path / "a")
    with pytest.raises(TypeError, match=r"gym_replay\.RecordToBuffer records a gymnasium\.Env"):
        RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    for recorder in (gym_replay.RecordToBuffer, vector.RecordToBuffer):
        with pytest.raises(TypeError, match=r"gym_replay\.wrappers\.parallel\.RecordToBuffer"):
            recorder(Table(TWO), tmp_path / "a")
        with pytest.raises(TypeError, match="aec_to_parallel"):
            recorder(rps_v2.env(), tmp_path / "a")


def test_wrappers_that_hide_ends_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="MultiEpisodeParallelEnv inside of a recorder shows several episodes as one"):
        RecordToBuffer(MultiEpisodeParallelEnv(Table(TWO), 2), tmp_path / "a").close()
    env = MultiEpisodeParallelEnv(RecordToBuffer(Table(TWO), tmp_path / "b"), 2)
    play(env, 1)
    env.close()
    assert [len(episode) for episode in env.env.buffer] == [3, 5] * 2


def test_limits_are_those_of_each_folder(tmp_path):
    env = RecordToBuffer(Table(TWO, narrow={"a_1"}), tmp_path, max_episodes=1)
    play(env)
    env.reset()
    with pytest.raises(BufferFullError):
        env.step({"a_0": 0, "a_1": np.zeros(2, np.float32)})
    assert env.env.t == 0
    env.close()
    assert [len(buffer) for buffer in env.buffers.values()] == [1, 1]


def test_a_full_disk(tmp_path, monkeypatch):
    hand = ByHand(Table({"a_0": Stay(0, 3), "b_0": Stay(0, 3)}, narrow={"b_0"}))
    env = RecordToBuffer(hand, tmp_path)
    with full_disk(monkeypatch), pytest.raises(StorageError):
        play(env)
    with full_disk(monkeypatch), pytest.raises(StorageError):
        env.close()
    env.close()
    assert_streams(env.buffers, hand.ended)


def test_on_episode_must_not_step(tmp_path):
    def look(episode):
        with pytest.raises(EpisodeStateError):
            env.reset()
        with pytest.raises(EpisodeStateError):
            env.close()
        return episode.meta["agent"] != "a_0"

    env = RecordToBuffer(Table(TWO), tmp_path, on_episode=look)
    play(env, 2)
    env.close()
    assert [episode.meta["agent"] for episode in env.buffer] == ["a_1"] * 2


def test_rewards_of_several_values(tmp_path):
    def vectors(env, results):
        observations, rewards, *others = results
        return observations, {agent: np.array([reward, 1.0]) for agent, reward in rewards.items()}, *others

    env = RecordToBuffer(Table(TWO, answer=vectors), tmp_path)
    play(env)
    env.close()
    assert env.buffer.episode(0)["reward"].tolist() == [[1, 1], [2, 1], [3, 1]]
    assert env.buffer.episode(0).meta["episode_return"].tolist() == [6, 3]


def test_values_out_of_bounds_are_counted(tmp_path):
    env = RecordToBuffer(Table(TWO, answer=wrong(0, np.full(2, 2e6, np.float32))), tmp_path)
    play(env)
    with pytest.warns(UserWarning, match="bounds"):
        env.close()
    assert env.out_of_bounds == {"observation": 1}


def test_it_is_no_copy_of_anything(tmp_path):
    env = RecordToBuffer(Table(TWO), tmp_path)
    for call in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="only writer of its folder"):
            call(env)
    env.close()


def test_an_episode_is_not_lost_where_the_recorder_is_garbage(tmp_path):
    env = RecordToBuffer(Table(TWO), tmp_path)
    play(env, limit=4)
    buffer = env.buffer
    del env
    assert [(len(episode), episode.complete) for episode in buffer] == [(3, True), (4, False)]
    buffer.close()


def test_a_missing_package_is_named_with_the_command():
    script = "import sys; sys.modules['pettingzoo'] = None\nimport gym_replay.wrappers.parallel"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'gym-replay[pettingzoo]'" in done.stderr


def test_what_agents_play_is_sampled_while_they_play(tmp_path):
    """Those that come late and leave early too; one that has left is not drawn until its episode is committed."""
    stays = {"a_0": [Stay(0, 3), Stay(5, 9)], "a_1": Stay(2, 8, "truncated"), "a_2": Stay(0, 9)}
    recorder = RecordToBuffer(Table(stays), tmp_path)
    recorder.reset()
    expected = set()
    for t in range(9):
        agents = list(recorder.agents)
        recorder.step(dict.fromkeys(agents, 1))
        expected |= {(int(agent[-1]), t) for agent in agents}
        batch = recorder.buffer.sample(200, include_open=True)
        agent, at = batch["observation"].unbind(1)
        assert {(int(one), int(when)) for one, when in zip(agent, at, strict=True)} == expected
        assert (batch["next_observation"][:, 1] == at + 1).all()
        assert (batch["reward"] == 10 * agent + at + 1).all()
    recorder.close()
