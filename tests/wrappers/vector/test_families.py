"""Environments of torch tensors, family by family, against the script that they play."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from wrappers.vector.batches import (
    COUNT,
    ENDS,
    OfIsaacLab,
    OfManiSkill,
    OfManiSkillVector,
    OfMjlab,
    expected,
    play,
    recorded,
)

import gym_replay
from gym_replay import FieldError, ReplayBuffer
from gym_replay.wrappers.vector import Adapter, Autoreset, RecordToBuffer, register_adapter

STEPS = 40


def by_index(envs, *, name):
    """A reset of some sub-environments, as a family calls it."""
    return {
        "env_idx": lambda ended: envs.reset(options={"env_idx": ended}),
        "env_ids": lambda ended: envs.reset(env_ids=ended),
    }[name]


# --- Isaac Lab and mjlab ---


@pytest.mark.parametrize("is_direct", [False, True])
def test_isaac_lab_loses_last_observations_and_nothing_else(tmp_path, is_direct):
    envs = RecordToBuffer(gym.wrappers.OrderEnforcing(OfIsaacLab(is_direct)), tmp_path)
    assert envs.autoreset_mode == "SameStep"
    envs.reset(seed=3)
    with pytest.warns(UserWarning, match="stored without theirs") as caught:
        taken = play(envs, STEPS)
    assert caught[0].filename.endswith("batches.py")  # where the step is
    envs.close()
    assert recorded(tmp_path, "observation.policy") == expected(taken, has_last=False)
    for episode in envs.buffer:
        assert episode.has_final == (not episode.complete)  # that of a cut one is known
        assert (episode["observation.critic"][:, 0] == 2 * episode["observation.policy"][:, 2]).all()
        assert episode.meta["episode_seed"] == -1  # all share one generator


def test_isaac_lab_with_last_observations_in_the_extras(tmp_path):
    envs = RecordToBuffer(OfIsaacLab(gives_last=True), tmp_path)
    envs.reset()
    taken = play(envs, STEPS)
    envs.close()
    assert recorded(tmp_path, "observation.policy") == expected(taken)


@pytest.mark.filterwarnings("ignore:the environment resets in the step")
def test_isaac_lab_stays_what_it_is(tmp_path):
    inner = OfIsaacLab()
    envs = RecordToBuffer(inner, tmp_path)
    assert isinstance(envs, gym.Env)
    assert not isinstance(envs, gym.vector.VectorEnv)
    assert envs.unwrapped is inner
    assert (envs.num_envs, envs.device, envs.max_episode_length) == (COUNT, "cpu", 250)
    assert envs.episode_length_buf is inner.episode_length_buf
    observations, extras = envs.reset()
    assert observations is inner.obs_buf
    assert extras is inner.extras
    result = envs.step(torch.zeros(COUNT, 2))
    assert result[0] is inner.obs_buf
    assert result[2] is inner.reset_terminated
    envs.close()


@pytest.mark.filterwarnings("ignore:the environment resets in the step")
@pytest.mark.filterwarnings("ignore:there is no infos..final_info")
def test_isaac_lab_infos_are_those_of_all(tmp_path):
    envs = RecordToBuffer(OfIsaacLab(), tmp_path, record_info=["log"])
    envs.reset()
    play(envs, 8)
    envs.close()
    name = "info.log.Episode_Reward%2Ftotal"
    assert all(episode[name].shape == (len(episode) + episode.has_final,) for episode in envs.buffer)


def test_isaac_lab_partial_resets(tmp_path):
    envs = RecordToBuffer(OfIsaacLab(gives_last=True), tmp_path)
    envs.reset()
    envs.step(torch.zeros(COUNT, 2))
    envs.reset(env_ids=torch.tensor([0]))
    envs.step(torch.zeros(COUNT, 2))
    envs.close()
    cut = [(int(episode.meta["env_index"]), len(episode)) for episode in envs.buffer if not episode.complete]
    assert cut == [(0, 1)]
    assert [len(episode) for episode in envs.buffer if episode.meta["env_index"] == 1] == [2]
    with pytest.raises(FieldError, match="env_ids"):
        RecordToBuffer(OfIsaacLab(), tmp_path / "other").reset(env_ids=torch.tensor([COUNT]))


def test_mjlab_without_autoreset(tmp_path):
    inner = OfMjlab()
    envs = RecordToBuffer(inner, tmp_path)
    assert envs.autoreset_mode == "Disabled"
    assert not isinstance(envs, (gym.Env, gym.vector.VectorEnv))
    assert envs.unwrapped is inner
    envs.reset()
    taken = play(envs, STEPS, by_index(envs, name="env_ids"))
    envs.close()
    assert inner.is_closed
    assert recorded(tmp_path, "observation.actor") == expected(taken)
    assert envs.buffer.observation_space == spaces.Dict({"actor": spaces.Box(-np.inf, np.inf, (3,))})


# --- ManiSkill ---


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_maniskill_in_the_same_step(tmp_path, is_wrapped):
    inner = OfManiSkillVector(OfManiSkill())
    envs = RecordToBuffer(gym.vector.VectorWrapper(inner) if is_wrapped else inner, tmp_path, record_info=True)
    assert isinstance(envs, gym.vector.VectorEnv)
    assert envs.base_env is inner.base_env
    assert envs.autoreset_mode == "SameStep"
    assert torch.is_tensor(envs.reset(seed=3)[0])
    taken = play(envs, STEPS)
    envs.close()
    assert recorded(tmp_path) == expected(taken)
    for episode in envs.buffer:
        assert episode["info.elapsed_steps"].tolist() == list(range(len(episode) + 1))
        assert episode["info.success"].tolist() == [t > 2 for t in range(len(episode) + 1)]
    seeds = {int(episode.meta["env_index"]): int(episode.meta["episode_seed"]) for episode in reversed(envs.buffer)}
    assert seeds == {0: 3, 1: -1, 2: -1}  # ManiSkill draws the others from the first one


@pytest.mark.parametrize("kind", ["base", "vector"])
def test_maniskill_with_partial_resets(tmp_path, kind):
    OfManiSkill.metadata["autoreset_mode"] = "SameStep"  # as another one's wrapper leaves it behind
    try:
        inner = OfManiSkill() if kind == "base" else OfManiSkillVector(OfManiSkill(), auto_reset=False)
        envs = RecordToBuffer(inner, tmp_path)
        assert envs.autoreset_mode == "Disabled"
        envs.reset(seed=[4, 5, 6])
        taken = play(envs, STEPS, by_index(envs, name="env_idx"))
        envs.close()
    finally:
        del OfManiSkill.metadata["autoreset_mode"]
    assert recorded(tmp_path) == expected(taken)
    first = {int(episode.meta["env_index"]): episode for episode in reversed(envs.buffer)}
    assert [int(first[i].meta["episode_seed"]) for i in range(COUNT)] == [4, 5, 6]
    assert {str(episode.meta["episode_options"]) for episode in envs.buffer} == {""}


# --- stored when the next step begins, as with a device ---


class LateAdapter(Adapter):
    """Stores late what is in the memory of the CPU too."""

    documented_mode, is_trusted = Autoreset.SAME_STEP, True

    @classmethod
    def takes(cls, envs):
        return hasattr(envs, "is_late")

    def stores_late(self, observations):
        return self.envs.is_late


register_adapter(LateAdapter)


class Overwriting(OfManiSkillVector):
    """Returns the same tensors again and again, in dtypes that NumPy has or has not, and not contiguous."""

    is_late = True

    def __init__(self):
        super().__init__(OfManiSkill())
        self.kept = torch.zeros(3, COUNT).T, torch.zeros(COUNT, dtype=torch.bfloat16)

    def reset(self, **options):
        observations, infos = super().reset(**options)
        self.kept[0][:] = observations
        return self.kept[0], infos

    def step(self, actions):
        observations, rewards, terminated, truncated, infos = super().step(actions)
        self.kept[0][:], self.kept[1][:] = observations, (rewards - actions.sum(dim=1)).bfloat16()
        infos["plain"] = np.arange(COUNT) + 0.5
        return self.kept[0], self.kept[1], terminated, truncated, infos


def test_what_is_stored_late_is_the_same(tmp_path):
    folders = tmp_path / "late", tmp_path / "at once"
    for folder in folders:
        inner = Overwriting()
        inner.is_late = folder is folders[0]
        envs = RecordToBuffer(
            inner,
            folder,
            record_info=True,
            autoreset_mode="SameStep",
            extra_fields={"extra": ("int64", ())},
            meta_fields={"note": ("int64", ())},
        )
        envs.reset()
        for t in range(STEPS):
            envs.annotate_step(extra=np.arange(COUNT) + 10 * t)
            play(envs, 1)
            if t % 5 == 0:
                envs.annotate(note=np.arange(COUNT) + t)
        envs.reset()
        play(envs, 1)
        envs.close()
    one, other = (ReplayBuffer.from_folder(folder, read_only=True) for folder in folders)
    assert len(one) == len(other) > 20
    for late, at_once in zip(one, other, strict=True):
        assert len(late) == len(at_once)
        assert late.meta["env_index"] == at_once.meta["env_index"]
        assert (late.meta["note"], late.complete) == (at_once.meta["note"], at_once.complete)
        assert set(late) == set(at_once)
        for name in late:
            assert late[name].tobytes() == at_once[name].tobytes(), name


def test_what_is_stored_late_and_does_not_fit_is_said_by_the_next_call(tmp_path):
    envs = RecordToBuffer(Overwriting(), tmp_path)
    envs.reset()
    play(envs, 1)
    envs.step(torch.zeros(COUNT, 3))
    with pytest.raises(FieldError, match="action"):
        envs.step(torch.zeros(COUNT, 2))
    envs.close()
    assert max(len(episode) for episode in envs.buffer) == 1  # what came before the step that does not fit


# --- others ---


class Grid(gym.Env):
    """An environment of nobody's family, of arrays, that resets in the same step by a name of its own."""

    def __init__(self, **given):
        self.num_envs, self.inner = COUNT, OfManiSkillVector(OfManiSkill())
        self.single_observation_space, self.single_action_space = spaces.Box(-99, 99, (3,)), spaces.Box(-1, 1, (2,))
        self.observation_space, self.action_space = self.inner.observation_space, self.inner.action_space
        vars(self).update(given)

    def reset(self, *, cells=None):
        options = None if cells is None else {"env_idx": torch.as_tensor(np.flatnonzero(cells))}
        return self.inner.reset(options=options)[0], {}

    def step(self, actions):
        *values, infos = self.inner.step(actions)
        return (*values, {key: infos[key] for key in ("final_observation", "_final_observation") if key in infos})


def test_an_environment_of_no_family_is_looked_at(tmp_path):
    with pytest.warns(UserWarning, match="missing `autoreset_mode`"):
        envs = RecordToBuffer(Grid(), tmp_path)
    envs.reset()
    with pytest.warns(UserWarning, match="same-step mode"):
        taken = play(envs, STEPS)
    envs.close()
    assert recorded(tmp_path) == expected(taken)


def test_an_adapter_of_ones_own(tmp_path):
    @register_adapter
    class GridAdapter(Adapter):
        documented_mode, is_trusted, honours_masks = Autoreset.SAME_STEP, True, True

        @classmethod
        def takes(cls, envs):
            return getattr(envs, "has_cells", False)

        def mask_of(self, arguments, keywords):
            return keywords.get("cells")

    envs = RecordToBuffer(Grid(has_cells=True), tmp_path)
    envs.reset()
    taken = play(envs, STEPS)
    envs.reset(cells=np.array([False, True, False]))
    envs.step(torch.zeros(COUNT, 2))
    envs.close()
    found, whole = recorded(tmp_path), expected(taken)
    assert found[1][:-2] == whole[1][:-1]
    assert [len(episode[1]) for episode in found[1][-2:]] == [len(whole[1][-1][1]), 1]
    with pytest.raises(TypeError, match="expected a subclass of Adapter"):
        register_adapter(Grid)


class OfNobody:
    """A batch that does not say what it observes."""

    num_envs, single_action_space = 2, spaces.Discrete(2)

    def reset(self):
        raise NotImplementedError

    step = reset


def test_what_is_no_batch_is_told_what_it_lacks(tmp_path):
    with pytest.raises(TypeError, match=r"lacks single_observation_space; .*register_adapter"):
        RecordToBuffer(OfNobody(), tmp_path)


class Unpacked(gym.Wrapper):
    """The only sub-environment of a batch as a single environment, as ManiSkill's CPUGymWrapper has it."""

    num_envs = 1
    observation_space, action_space = spaces.Box(-9, 9, (3,)), spaces.Box(-1, 1, (2,))


def test_each_recorder_names_the_other_one_only_where_that_takes_it(tmp_path):
    for batch in (OfIsaacLab(), OfManiSkill(), OfManiSkillVector(OfManiSkill()), OfMjlab()):
        with pytest.raises(TypeError, match=r"gym_replay\.wrappers\.vector\.RecordToBuffer"):
            gym_replay.RecordToBuffer(batch, tmp_path / "no")
    single = Unpacked(OfManiSkill())
    with pytest.raises(TypeError, match=r"num_envs=1, but .* gym_replay\.RecordToBuffer"):
        RecordToBuffer(single, tmp_path / "no")
    gym_replay.RecordToBuffer(single, tmp_path / "yes").close()
    assert not (tmp_path / "no").exists()


class OldNames(gym.vector.VectorWrapper):
    """Last observations by the name that they had before Gymnasium 1.0."""

    def step(self, actions):
        *values, infos = self.env.step(actions)
        names = {"final_obs": "final_observation", "_final_obs": "_final_observation"}
        return (*values, {names.get(key, key): value for key, value in infos.items()})


def test_old_names_of_last_observations(tmp_path):
    for folder, wrapper in (("old", OldNames), ("new", gym.vector.VectorWrapper)):
        plain = gym.make_vec(
            "CartPole-v1", num_envs=3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"}
        )
        envs = RecordToBuffer(wrapper(plain), tmp_path / folder)
        envs.reset(seed=0)
        envs.action_space.seed(0)
        for _ in range(60):
            envs.step(envs.action_space.sample())
        envs.close()
    old, new = (ReplayBuffer.from_folder(tmp_path / folder, read_only=True) for folder in ("old", "new"))
    assert len(old) == len(new) > 3
    assert all(episode.has_final for episode in old)
    for one, other in zip(old, new, strict=True):
        assert one["observation"].tobytes() == other["observation"].tobytes()


def test_the_script_has_what_is_asked_of_it():
    hows = {(length, how) for ends in ENDS for length, how in ends}
    assert {(1, (True, True)), (1, (True, False)), (1, (False, True))} <= hows
