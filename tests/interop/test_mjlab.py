"""mjlab on the CPU: its cart-pole, reset by itself and by hand, against what it returned."""

import pytest

from gym_replay import check_buffer
from gym_replay.wrappers.vector import RecordToBuffer

mjlab_envs = pytest.importorskip("mjlab.envs")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its simulator

COUNT = 3


@pytest.mark.parametrize("auto_reset", [True, False])
def test_what_is_recorded_is_what_it_returned(tmp_path, auto_reset):
    from mjlab.tasks.registry import list_tasks, load_env_cfg

    config = load_env_cfg(next(name for name in list_tasks() if "artpole" in name))
    config.scene.num_envs, config.episode_length_s, config.auto_reset = COUNT, 0.2, auto_reset
    inner = mjlab_envs.ManagerBasedRlEnv(config, device="cpu")
    envs = RecordToBuffer(inner, tmp_path)
    assert envs.autoreset_mode == ("SameStep" if auto_reset else "Disabled")
    assert (envs.unwrapped, envs.num_envs, envs.step_dt) == (inner, COUNT, inner.step_dt)
    observations, _ = envs.reset(seed=3)
    rows, expected = [[] for _ in range(COUNT)], [[] for _ in range(COUNT)]
    for step in range(11):
        generator = torch.Generator().manual_seed(step)
        actions = torch.rand(COUNT, *envs.single_action_space.shape, generator=generator) * 2 - 1
        before = observations["actor"].clone()
        observations, rewards, terminated, time_outs, _ = envs.step(actions)
        for i in range(COUNT):
            rows[i].append((before[i].tolist(), actions[i].tolist(), float(rewards[i])))
            if terminated[i] or time_outs[i]:
                last = [] if auto_reset else [observations["actor"][i].tolist()]
                expected[i].append((rows[i], last, bool(terminated[i]), bool(time_outs[i])))
                rows[i] = []
        done = terminated | time_outs
        if done.any() and not auto_reset:
            observations, _ = envs.reset(env_ids=done.nonzero().squeeze(-1))
    envs.close()
    assert check_buffer(tmp_path, progress=False).ok
    for i in range(COUNT):
        found = [episode for episode in envs.buffer if episode.complete and episode.meta["env_index"] == i]
        assert len(found) == len(expected[i]) > 0
        for episode, (steps, last, terminates, times_out) in zip(found, expected[i], strict=True):
            seen, acts, rewards = zip(*steps, strict=True)
            assert episode["observation.actor"].tolist() == [*seen, *last]
            assert episode["action"].tolist() == list(acts)
            assert episode["reward"].tolist() == list(rewards)
            assert (bool(episode["terminated"][-1]), bool(episode["truncated"][-1])) == (terminates, times_out)
            assert episode.has_final != auto_reset
