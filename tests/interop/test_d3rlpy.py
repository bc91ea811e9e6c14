"""d3rlpy's episodes. It pins gymnasium 1.0.0, so it has an environment of its own: see docs/interop.md."""

import gymnasium as gym
import numpy as np
import pytest
from interop_helpers import by_hand, cartpole, pendulum, sights

from gym_replay import EmptyBufferError, Field, FieldError, RecordToBuffer, ReplayBuffer, to_d3rlpy

d3rlpy = pytest.importorskip("d3rlpy")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("make", "algorithm"), [(cartpole, "DiscreteBC"), (cartpole, "DiscreteCQL"), (pendulum, "CQL"), (pendulum, "BC")]
)
def test_an_algorithm_fits_it(tmp_path, make, algorithm):
    with make(tmp_path / "a") as buffer:
        model = getattr(d3rlpy.algos, f"{algorithm}Config")(batch_size=16).create(device=False)
        found = model.fit(
            to_d3rlpy(buffer),
            n_steps=4,
            n_steps_per_epoch=2,
            show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )
        assert len(found) == 2
        assert all(np.isfinite(value) for _, losses in found for value in losses.values())
        assert model.action_size == (2 if make is cartpole else 1)


def test_a_decision_transformer_fits_it(tmp_path):
    with pendulum(tmp_path / "a") as buffer:
        model = d3rlpy.algos.DecisionTransformerConfig(batch_size=4, context_size=5).create(device=False)
        model.fit(
            to_d3rlpy(buffer),
            n_steps=2,
            n_steps_per_epoch=2,
            show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        )


def test_the_episodes_are_the_files(tmp_path):
    with by_hand(tmp_path / "a", [4, 3], [True, False]) as buffer:
        episodes = to_d3rlpy(buffer).episodes
        for ours, theirs in zip(buffer, episodes, strict=True):
            assert np.shares_memory(theirs.observations, ours["observation"])
            assert np.shares_memory(theirs.actions, ours["action"])
            np.testing.assert_array_equal(theirs.observations, ours["observation"][: len(ours)])
            np.testing.assert_array_equal(theirs.actions[:, 0], ours["action"])
            assert theirs.rewards.dtype == np.float32
            assert theirs.rewards.shape == (len(ours), 1)
            np.testing.assert_array_equal(theirs.rewards[:, 0], ours["reward"])
        assert [episode.terminated for episode in episodes] == [True, False]
        assert [episode.transition_count for episode in episodes] == [4, 2]


def test_in_a_ring_they_are_copies(tmp_path):
    with by_hand(tmp_path / "a", [4, 3], [True, True], circular=True, max_episodes=2) as buffer:
        first = to_d3rlpy(buffer, episodes=[0]).episodes[0]
        assert not np.shares_memory(first.observations, buffer.episode(0)["observation"])
        before = first.observations.copy()
        for number in range(3):
            buffer.store_episode(observation=np.full((5, 2), -number), action=np.zeros(4, int), reward=np.ones(4))
        np.testing.assert_array_equal(first.observations, before)


def test_images_and_dicts(tmp_path):
    with sights(tmp_path / "a", 2) as buffer:
        episode = to_d3rlpy(buffer).episodes[0]
        image, state = episode.observations
        assert image.shape == (len(episode), 3, 32, 40)
        assert np.shares_memory(image, buffer.episode(0)["observation.camera.top"])
        np.testing.assert_array_equal(image[1, :, 0, 0], (1, 2, 3))
        assert state.shape == (len(episode), 4)
        assert to_d3rlpy(buffer, image_layout=None).episodes[0].observations[0].shape == (len(episode), 32, 40, 3)


def test_a_discrete_space_that_does_not_begin_at_0(tmp_path):
    class Shifted(gym.ActionWrapper):
        action_space = gym.spaces.Discrete(2, start=5)

        def action(self, action):
            return action - 5

    env = RecordToBuffer(Shifted(gym.make("CartPole-v1")), tmp_path / "a")
    env.reset(seed=0)
    while not any(env.step(5)[2:4]):
        pass
    env.close()
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        dataset = to_d3rlpy(buffer)
        assert set(dataset.episodes[0].actions.reshape(-1).tolist()) == {0}
        assert dataset.dataset_info.action_size == 2  # though only one of them was taken


def test_what_it_does_not_take(tmp_path):
    with by_hand(tmp_path / "a", [4], [True]) as buffer:
        with pytest.raises(FieldError, match="single integers or vectors of floats"):
            to_d3rlpy(buffer, names={"action": "terminated"})
        with pytest.raises(FieldError, match="image_layout"):
            to_d3rlpy(buffer, image_layout="WHC")
        with pytest.raises(EmptyBufferError):
            to_d3rlpy(buffer, episodes=[])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_a_step_is_a_column_there(tmp_path, shape):
    fields = {"observation": Field("float32", (2,), state=True), "action": ("int64", shape)}
    fields |= {"reward": ("float64", shape), "terminated": ("bool", shape)}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        values = {name: np.arange(3).reshape(3, *shape) for name in ("action", "reward")}
        ends = np.array([False, False, True]).reshape(3, *shape)
        buffer.store_episode(observation=np.zeros((4, 2)), terminated=ends, **values)
        (episode,) = to_d3rlpy(buffer, names={"truncated": None}).episodes
        assert episode.actions.tolist() == episode.rewards.tolist() == [[0], [1], [2]]
        assert episode.terminated
