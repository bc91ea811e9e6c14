"""What looks at episodes, ``on_episode``, keeps none from being stored, and stores none twice."""

import gc

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from wrappers.scripted import Scripted

from gym_replay import EpisodeStateError, ReplayBuffer, check_buffer
from gym_replay import RecordToBuffer as RecordSingle
from gym_replay.wrappers.vector import RecordToBuffer


def scripted(lengths, mode=AutoresetMode.NEXT_STEP):
    return SyncVectorEnv([lambda own=own: Scripted(own) for own in lengths], autoreset_mode=mode)


def held(folder):
    """The sub-environment and length of each stored episode."""
    assert check_buffer(folder, progress=False).ok
    return [(int(episode.meta["env_index"]), len(episode)) for episode in ReplayBuffer(folder, read_only=True)]


def failing(times=1 << 30):
    """Raises its first calls, numbered; the second value is whom it saw."""
    seen = []

    def look(episode):
        seen.append(episode.env_index)
        if len(seen) <= times:
            raise RuntimeError(f"call {len(seen)}")

    return look, seen


@pytest.mark.parametrize("options", [{"max_episodes": 16, "circular": True}, {}], ids=["several commits", "one commit"])
@pytest.mark.parametrize("times", [1, 100])
def test_an_error_while_closing_loses_no_episode(tmp_path, options, times):
    look, seen = failing(times)
    envs = RecordToBuffer(scripted([3] * 8), tmp_path, on_episode=look, **options)
    envs.reset()
    envs.step(np.zeros(8, int))
    with pytest.raises(RuntimeError, match=r"call 1$"):
        envs.close()
    assert seen == list(range(8))
    assert held(tmp_path) == [(i, 1) for i in range(8)]


def test_an_error_in_a_step_loses_no_episode(tmp_path):
    look, seen = failing()
    envs = RecordToBuffer(scripted([2] * 8), tmp_path, on_episode=look, max_episodes=32, circular=True)
    envs.reset()
    envs.step(np.zeros(8, int))
    with pytest.raises(RuntimeError, match=r"call 1$"):
        envs.step(np.zeros(8, int))
    assert seen == list(range(8))
    envs.step(np.zeros(8, int))  # resets
    envs.step(np.zeros(8, int))
    with pytest.raises(RuntimeError, match=r"call 9$"):
        envs.close()
    assert held(tmp_path) == [*[(i, 2) for i in range(8)], *[(i, 1) for i in range(8)]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody is there to catch it
def test_an_error_without_close_loses_no_episode(tmp_path):
    look, _ = failing(1)
    envs = RecordToBuffer(scripted([9] * 6), tmp_path, on_episode=look, max_episodes=12, circular=True)
    envs.reset()
    envs.step(np.zeros(6, int))
    del envs
    gc.collect()
    assert held(tmp_path) == [(i, 1) for i in range(6)]


@pytest.mark.parametrize("method", ["step", "reset", "close"])
@pytest.mark.parametrize("ending", ["step", "reset", "close"])
@pytest.mark.parametrize("is_vector", [True, False])
def test_the_recorder_is_not_used_while_it_shows_an_episode(tmp_path, method, ending, is_vector):
    actions = np.zeros(2, int) if is_vector else 0
    calls = {"step": lambda: env.step(actions), "reset": lambda: env.reset(), "close": lambda: env.close()}
    shown = []

    def look(episode):
        shown.append((getattr(episode, "env_index", 0), len(episode)))
        calls[method]()

    if is_vector:
        env = RecordToBuffer(scripted([2, 2]), tmp_path, on_episode=look)
    else:
        env = RecordSingle(Scripted(2), tmp_path, on_episode=look)
    env.reset()
    env.step(actions)
    with pytest.raises(EpisodeStateError, match="on_episode"):
        calls[ending]()
    assert shown == [(i, 2 if ending == "step" else 1) for i in range(2 if is_vector else 1)]
    assert held(tmp_path) == shown
    if ending != "close":
        env.reset()
        env.close()
    assert held(tmp_path) == shown


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_it_sees_the_meta_values_that_were_set_in_the_episode(tmp_path, mode):
    shown = []
    fields = {"skill": "int", "goal": ("float", 2), "task": "str", "unused": "int"}
    envs = RecordToBuffer(
        scripted([2, 3], mode), tmp_path, meta_fields=fields, on_episode=lambda episode: shown.append(episode.meta)
    )
    envs.reset()
    envs.annotate(skill=[5, 6], task=["a", "b"], goal=np.ones((2, 2)))
    for _ in range(4):
        envs.step(np.zeros(2, int))
    envs.annotate(skill=[7, 8])
    envs.close()
    goals = [meta.pop("goal", None) for meta in shown]
    assert [goal is not None and goal.tolist() for goal in goals[:2]] == [[1, 1]] * 2
    assert all(goal is None for goal in goals[2:])
    assert shown[:2] == [{"skill": 5, "task": "a"}, {"skill": 6, "task": "b"}]
    assert all(type(meta.get("skill", 0)) is int for meta in shown)
    others = [{}, {"skill": 8}] if mode is AutoresetMode.SAME_STEP else [{"skill": 7}]
    assert shown[2:] == others
