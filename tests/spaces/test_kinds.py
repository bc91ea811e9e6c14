"""A kind of space is one class: everything that visits the tree of a space takes a new kind as it takes the others."""

import ast
import json
from datetime import timedelta
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import Space, spaces

import gym_replay
from gym_replay import RecordToBuffer, ReplayBuffer, UnsupportedSpaceError
from gym_replay.spaces import space_from_json, space_to_json, space_tree, unflatten
from gym_replay.spaces.node import NODES, Node

ROOT = Path(gym_replay.__file__).parent
MILLISECOND = timedelta(milliseconds=1)


class Duration(Space):
    """Whole milliseconds up to a longest time, as timedelta objects."""

    def __init__(self, longest):
        self.longest = longest
        super().__init__((), np.int64)

    def sample(self, mask=None, probability=None):
        return int(self.np_random.integers(self.longest // MILLISECOND)) * MILLISECOND

    def contains(self, x):
        return isinstance(x, timedelta) and timedelta() <= x <= self.longest

    def __eq__(self, other):
        return isinstance(other, Duration) and other.longest == self.longest

    __hash__ = None


@pytest.fixture
def durations():
    with mock.patch.dict(NODES):

        class DurationNode(Node, of=Duration):
            def __init__(self, space, path, maker):
                super().__init__(space, path, maker)
                self.leaves = [maker.leaf(path, space, ragged=path.has_items)]

            def flatten(self, value):
                return [np.int64(value // MILLISECOND)]

            def unflatten(self, values):
                return int(next(values)) * MILLISECOND

            def split(self, values):
                return [np.array([value // MILLISECOND for value in values], np.int64)]

            def join(self, count, columns):
                return [int(number) * MILLISECOND for number in next(columns)]

            @classmethod
            def bounds(cls, space):
                return np.int64(0), np.int64(space.longest // MILLISECOND)

            @classmethod
            def to_json(cls, space, path):
                return {"type": "Duration", "longest": space.longest // MILLISECOND}

            @classmethod
            def from_json(cls, reader, value, path):
                return Duration(value["longest"] * MILLISECOND)

        yield


WITH_PARTS = ("Dict", "Tuple", "OneOf", "Sequence", "Graph", "Text")
MINUTE = timedelta(minutes=1)
WRAPPED = {
    "alone": lambda space: space,
    "dict": lambda space: spaces.Dict({"since": space, "x": spaces.Discrete(3)}),
    "tuple": lambda space: spaces.Tuple([spaces.Dict({"since": space}), space]),
    "sequence": lambda space: spaces.Sequence(space),
    "stacked": lambda space: spaces.Sequence(space, stack=True),
    "sequences": lambda space: spaces.Sequence(spaces.Sequence(spaces.Tuple([space, spaces.Text(3)]))),
    "one of": lambda space: spaces.OneOf([spaces.Discrete(3), space]),
}


@pytest.mark.usefixtures("durations")
@pytest.mark.parametrize("name", WRAPPED)
def test_values_of_a_new_kind_and_its_json_come_back_at_any_depth(name):
    space = WRAPPED[name](Duration(MINUTE))
    tree = space_tree(space, "x")
    for seed in range(5):
        space.seed(seed)
        value = space.sample()
        assert unflatten(tree, tree.flatten(value)) == value
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert again == space
    assert [leaf.name for leaf in space_tree(again, "x").leaves] == [leaf.name for leaf in tree.leaves]


class Waiting(gym.Env):
    """Each step takes ten seconds more than the one before."""

    observation_space = spaces.Dict({"since": Duration(MINUTE), "x": spaces.Box(0, 9, (2,), np.float32)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._observe(), {}

    def _observe(self):
        return {"since": self.t * 10_000 * MILLISECOND, "x": np.full(2, self.t, np.float32)}

    def step(self, action):
        self.t += 1
        return self._observe(), 0.0, self.t == 8, False, {}


@pytest.mark.usefixtures("durations")
def test_a_new_kind_is_recorded_checked_and_loaded(tmp_path):
    with RecordToBuffer(Waiting(), tmp_path) as env:
        env.reset()
        for _ in range(8):
            env.step(0)
        with pytest.warns(UserWarning, match=r"observation\.since: 70000 is outside of its space's bounds 0 to 60000"):
            assert env.out_of_bounds == {"observation.since": 2}
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert buffer.episode(0)["observation.since"].tolist() == [10_000 * t for t in range(9)]
        assert buffer.observation_space == Waiting.observation_space
        (batch,) = buffer.dataloader(8, timestep_level=True, nested=True)
        assert batch["observation"]["since"].tolist() == [10_000 * t for t in range(8)]


def test_a_kind_that_nobody_knows_is_refused():
    with pytest.raises(UnsupportedSpaceError, match=r"observation\.since.*Duration"):
        space_tree(Waiting.observation_space, "observation")


def test_only_the_tree_asks_what_kind_of_space_has_parts():
    """Of one file it is the business itself: Stable-Baselines3 has a buffer of its own for dicts."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_question = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
            if is_question and any(f"spaces.{kind}" in ast.unparse(node) for kind in WITH_PARTS):
                found.add(path.relative_to(ROOT).as_posix())
    assert found <= {"interop/sb3.py"}
