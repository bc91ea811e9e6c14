"""Environments of PettingZoo and mpe2, and what SuperSuit makes of them: they have an environment of their own."""

import warnings
from importlib import import_module

import numpy as np
import pytest

pytest.importorskip("mpe2")
pytest.importorskip("supersuit")

import supersuit
from pettingzoo.utils import aec_to_parallel
from wrappers.parallel.matches import ByHand, assert_streams, play

from gym_replay.wrappers import vector
from gym_replay.wrappers.parallel import RecordToBuffer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*render method", "ignore:.*render_mode")

KAZ = "pettingzoo.butterfly.knights_archers_zombies_v11"


@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.parametrize(
    ("name", "folders"),
    [
        ("mpe2.simple_spread_v3", 1),
        ("mpe2.simple_tag_v3", 2),
        ("mpe2.simple_world_comm_v3", 3),
        ("mpe2.simple_speaker_listener_v4", 2),
        (KAZ, 1),
    ],
)
def test_streams_are_those_that_are_kept_by_hand(tmp_path, name, folders, convert):
    made = import_module(name)
    cycles = 250 if name == KAZ else 10
    hand = ByHand(aec_to_parallel(made.env(max_cycles=cycles)) if convert else made.parallel_env(max_cycles=cycles))
    env = RecordToBuffer(hand, tmp_path, record_info=True)
    play(env, 2)
    play(env, 1, limit=5)
    env.close()
    hand.cut()
    assert_streams(env.buffers, hand.ended)
    assert len({buffer.folder for buffer in env.buffers.values()}) == folders
    if name == KAZ:  # agents that die alone
        assert len({len(stream.actions) for _, stream in hand.ended if stream.complete}) > 1


def test_it_passes_the_test_of_its_kind(tmp_path):
    env = RecordToBuffer(import_module("mpe2.simple_tag_v3").parallel_env(max_cycles=10), tmp_path)
    import_module("pettingzoo.test").parallel_api_test(env, num_cycles=40)
    env.close()


def test_black_death_inside_is_warned_about_and_outside_hides_nothing(tmp_path):
    with pytest.warns(UserWarning, match="black_death_par inside of a recorder"):
        RecordToBuffer(supersuit.black_death_v3(import_module(KAZ).parallel_env()), tmp_path / "outside").close()
    hand = ByHand(import_module(KAZ).parallel_env(max_cycles=250))
    recorder = RecordToBuffer(hand, tmp_path / "inside")
    play(supersuit.black_death_v3(recorder), 2)
    recorder.close()
    assert_streams(recorder.buffers, hand.ended)


def test_as_a_vector_environment(tmp_path):
    """The same matches, recorded inside of SuperSuit's vector environment and around it."""

    def run(envs):
        envs.reset(seed=3)
        rng = np.random.default_rng(0)
        for _ in range(25):
            envs.step(rng.integers(0, 5, 3))
        envs.close()

    spread = import_module("mpe2.simple_spread_v3").parallel_env
    inside = RecordToBuffer(spread(max_cycles=10), tmp_path / "inside")
    run(supersuit.pettingzoo_env_to_vec_env_v1(inside))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(same-step|autoreset_mode)")
        around = vector.RecordToBuffer(
            supersuit.pettingzoo_env_to_vec_env_v1(spread(max_cycles=10)), tmp_path / "around"
        )
        run(around)
    assert len(inside.buffer) == len(around.buffer) == 9
    for one, other in zip(inside.buffer, around.buffer, strict=True):
        assert one.meta["env_index"] == other.meta["env_index"]
        for name in ("observation", "action", "terminated", "truncated"):
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["reward"].astype(np.float32), other["reward"])  # as SuperSuit has them


def test_as_a_vector_environment_of_stable_baselines3(tmp_path):
    pytest.importorskip("stable_baselines3")
    spread = supersuit.pettingzoo_env_to_vec_env_v1(import_module("mpe2.simple_spread_v3").parallel_env(max_cycles=10))
    env = vector.RecordToBuffer(supersuit.concat_vec_envs_v1(spread, 2, base_class="stable_baselines3"), tmp_path)
    env.reset()
    for _ in range(9):
        env.step(np.ones(6, np.int64))
    with pytest.warns(UserWarning, match="TimeLimit.truncated"):
        env.step(np.ones(6, np.int64))
    env.step(np.ones(6, np.int64))
    env.close()
    ended = [episode for episode in env.buffer if episode.complete]
    assert [len(episode) for episode in ended] == [10] * 6
    assert all(episode["terminated"][-1] and episode.has_final for episode in ended)
    assert not any((episode["observation"][-1] == episode["observation"][0]).all() for episode in ended)
