"""Batches nested as the observation space was."""

import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from format_helpers import write_metadata
from gymnasium import spaces

from gym_replay import (
    CorruptBufferError,
    Field,
    FieldError,
    GoalSampler,
    RecordToBuffer,
    ReplayBuffer,
    n_step_loader,
    timestep_loader,
    trajectory_loader,
    window_loader,
)


class Sampled(gym.Env):
    """Its observations are samples of its space."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or spaces.Discrete(3)
        self.observation_space.seed(0)
        self.seen = []

    def _observe(self):
        self.seen.append(self.observation_space.sample())
        return self.seen[-1]

    def reset(self, *, seed=None, options=None):
        return self._observe(), {}

    def step(self, action):
        return self._observe(), 0.0, False, False, {}


def record(folder, observation_space, action_space=None, steps=4):
    env = Sampled(observation_space, action_space)
    with RecordToBuffer(env, folder) as recorder:
        recorder.action_space.seed(0)
        recorder.reset()
        actions = [recorder.action_space.sample() for _ in range(steps)]
        for action in actions:
            recorder.step(action)
    return ReplayBuffer.from_folder(folder), env.seen, actions


def box(*shape):
    return spaces.Box(-1, 1, shape, np.float32)


KEYS = ("plain", "a.b", "a%2Eb", "50%", "x/y", "..", "1", "", " a", "Gain", "gain", "ä" * 100, "index")


def assert_same(found, observations):
    """A batch (batch, ...) and the observations that it stacks have the same parts at the same keys."""
    first = observations[0]
    if isinstance(first, dict):
        assert isinstance(found, dict)
        assert [key for key in found if not str(key).endswith("_lens")] == list(first)
        for key in first:
            assert_same(found[key], [observation[key] for observation in observations])
    elif isinstance(first, tuple):
        assert isinstance(found, tuple)
        assert len(found) == len(first)
        for i, part in enumerate(found):
            assert_same(part, [observation[i] for observation in observations])
    elif isinstance(first, str):
        for row, text in zip(found, observations, strict=True):
            assert bytes(row.tolist()).rstrip(b"\0").decode() == text
    else:
        np.testing.assert_array_equal(found, np.stack(observations))


SPACES = {
    "flat": box(3),
    "dict": spaces.Dict({"camera": spaces.Dict({"rgb": box(2, 2), "depth": box(2)}), "speed": box()}),
    "keys": spaces.Dict({key: box() for key in KEYS}),
    "tuple": spaces.Tuple([box(2), spaces.Dict({"x": spaces.Discrete(4), "y": spaces.Tuple([box(), box(1)])})]),
    "empty": spaces.Dict({"nothing": spaces.Dict({}), "none": spaces.Tuple([]), "x": box()}),
    "text": spaces.Dict({"said": spaces.Text(8), "x": box()}),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_batch_has_the_parts_of_the_space(tmp_path, name):
    buffer, seen, actions = record(tmp_path, SPACES[name], SPACES[name])
    with buffer:
        (batch,) = timestep_loader(buffer, 4, nested=True)
        assert_same(batch["observation"], seen[:-1])
        assert_same(batch["action"], actions)
        assert batch["reward"].shape == (4,)
        assert not [entry for entry in batch if "." in entry]
        single = buffer.dataset(timestep_level=True, nested=True)[2]
        assert_same(batch_of_one(single["observation"]), [seen[2]])
        (batch,) = n_step_loader(buffer, 4, nested=True, sequence_fields=[n for n in buffer.fieldnames if "act" in n])
        assert_same(batch["next_observation"], seen[1:])
        if name != "text":
            (batch,) = trajectory_loader(buffer, 1, nested=True)
            assert_same(first_of(batch["observation"]), seen[:-1])


def batch_of_one(tree):
    if isinstance(tree, dict):
        return {key: batch_of_one(part) for key, part in tree.items()}
    return tuple(map(batch_of_one, tree)) if isinstance(tree, tuple) else tree[None]


def first_of(tree):
    if isinstance(tree, dict):
        return {key: first_of(part) for key, part in tree.items()}
    return tuple(map(first_of, tree)) if isinstance(tree, tuple) else tree[0]


def test_what_belongs_to_a_field_is_nested_beside_it(tmp_path):
    buffer, seen, _ = record(tmp_path, SPACES["text"])
    with buffer:
        offsets = {"observation.said": (0, 1), "observation.x": (-1, 0)}
        (batch,) = window_loader(buffer, 4, offsets=offsets, nested=True, goal_sampler=GoalSampler())
        lens = [[len(seen[t + k]["said"]) for k in (0, 1)] for t in range(4)]
        assert batch["observation"]["said_lens"].tolist() == lens
        assert batch["observation_is_pad"]["x"].tolist() == [[True, False], *[[False, False]] * 3]
        assert batch["value_goal_observation"]["x"].shape == (4,)
        assert set(batch) == {
            "observation", "observation_is_pad", "action", "reward", "terminated", "truncated",
            "value_goal_observation", "goal_reward", "goal_mask", "policy_goal_observation",
        }  # fmt: skip


def test_lengths_lie_beside_a_part_with_a_name_and_else_in_a_tree_of_their_own(tmp_path):
    space = spaces.Tuple([spaces.Text(8), spaces.Dict({"a.b": spaces.Text(8), "x": box()})])
    buffer, seen, _ = record(tmp_path, space, spaces.Text(8))
    with buffer:
        (batch,) = timestep_loader(buffer, 4, nested=True)
        assert isinstance(batch["observation"], tuple)
        assert list(batch["observation"][1]) == ["a.b", "a.b_lens", "x"]
        assert batch["observation"][1]["a.b_lens"].tolist() == [len(one[1]["a.b"]) for one in seen[:-1]]
        assert list(batch["observation_lens"]) == [0]
        assert batch["observation_lens"][0].tolist() == [len(one[0]) for one in seen[:-1]]
        assert batch["action_lens"].shape == (4,)
        (batch,) = timestep_loader(buffer, 4, nested=True, fieldname_map={"observation.1.a%2Eb_lens": "sizes"})
        assert list(batch["observation"][1]) == ["a.b", "x"]
        assert batch["sizes"].shape == (4,)


def test_some_of_the_parts(tmp_path):
    buffer, seen, _ = record(tmp_path, SPACES["tuple"])
    with buffer:
        (batch,) = timestep_loader(buffer, 4, nested=True, fields=("observation.1.x", "observation.1.y.1"))
        assert list(batch) == ["observation"]
        assert list(batch["observation"]) == [1]
        assert list(batch["observation"][1]) == ["x", "y"]
        np.testing.assert_array_equal(batch["observation"][1]["y"][1], [o[1]["y"][1] for o in seen[:-1]])
        (batch,) = timestep_loader(buffer, 4, nested=True, to_named_tuple=("observation", "reward"))
        assert_same(batch.observation, seen[:-1])
        (batch,) = timestep_loader(buffer, 4, nested=True, fieldname_map={"observation.0": "position"})
        assert batch["position"].shape == (4, 2)
        assert list(batch["observation"]) == [1]
        with pytest.raises(FieldError, match=r"observation\.0"):
            timestep_loader(buffer, 4, nested=True, to_named_tuple=("observation.0",))
        with pytest.raises(FieldError, match="called 'observation'"):
            timestep_loader(buffer, 4, nested=True, fieldname_map={"reward": "observation"})
        (flat,) = timestep_loader(buffer, 4)
        assert "observation.1.y.0" in flat


def test_trees_move_to_devices_and_come_from_workers(tmp_path):
    buffer, seen, _ = record(tmp_path, SPACES["tuple"])
    with buffer:
        (batch,) = timestep_loader(buffer, 4, nested=True, device="meta")
        assert batch["observation"][1]["y"][0].device == torch.device("meta")
        (batch,) = timestep_loader(buffer, 4, nested=True, num_workers=1, multiprocessing_context="fork")
        assert_same(batch["observation"], seen[:-1])
        sent = pickle.loads(pickle.dumps(buffer.dataset(timestep_level=True, nested=True)))  # as to a spawned worker
        assert_same(sent[np.arange(len(sent))]["observation"], seen[:-1])


def test_sequences_choices_and_graphs(tmp_path):
    space = spaces.Dict(
        {
            "items": spaces.Sequence(spaces.Dict({"a.b": box(), "c": box(2)})),
            "words": spaces.Sequence(spaces.Text(3)),
            "one": spaces.OneOf([box(2), spaces.Dict({"z": box()})]),
            "map": spaces.Graph(box(2), box(1)),
        }
    )
    buffer, _, _ = record(tmp_path, space)
    with buffer:
        (batch,) = timestep_loader(buffer, 4, nested=True)
        tree = batch["observation"]
        assert set(tree) == {"items", "words", "words_lens", "one", "map"}
        assert set(tree["items"]) == {"a.b", "a.b_lens", "c", "c_lens"}
        assert set(tree["words"]) == {"%values", "%lengths", "%lengths_lens"}
        assert {0, 1, "index"} == set(tree["one"])
        assert set(tree["one"][1]) == {"z", "z_lens"}
        ragged = {"nodes", "edges", "edge_links"}
        assert set(tree["map"]) == {*ragged, *(f"{name}_lens" for name in ragged), "has_edges", "has_edge_links"}
        (flat,) = timestep_loader(buffer, 4)
        assert torch.equal(tree["items"]["a.b"], flat["observation.items.a%2Eb"])
        assert torch.equal(tree["words"]["%values"], flat["observation.words"])
        assert torch.equal(tree["map"]["nodes"], flat["observation.map.nodes"])


def test_fields_that_no_space_describes(tmp_path):
    fields = {"state.camera.0": Field("float", state=True), "state.camera.x": "int", "action": "int"}
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        buffer.store_episode(**{"state.camera.0": [1, 2], "state.camera.x": [3], "action": [4]})
        (batch,) = timestep_loader(buffer, 1, nested=True)
        assert batch["state"] == {"camera": {"0": torch.tensor([1.0]), "x": torch.tensor([3])}}
        assert batch["action"].tolist() == [4]


def test_a_damaged_space_is_refused(tmp_path):
    buffer, _, _ = record(tmp_path, SPACES["dict"])
    buffer.close()
    path = tmp_path / "metadata.json"
    whole = path.read_text()
    for damage in ({"type": "Dict"}, {"type": "Dict", "items": [3]}, {"type": "Tuple", "spaces": 3}, {"type": [1]}):
        metadata = json.loads(whole)
        metadata["environment"]["observation_space"] = damage
        write_metadata(tmp_path, metadata)
        with (
            ReplayBuffer.from_folder(tmp_path, read_only=True) as reader,
            pytest.raises(CorruptBufferError, match="observation_space"),
        ):
            timestep_loader(reader, 4, nested=True)
