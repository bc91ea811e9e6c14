"""The environments that the recorder is tried on: all that Gymnasium registers, and a spread of other packages'.

Which packages are installed decides what runs: a test of an environment that cannot be built is skipped, and says why.
"""

import re
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces


def _module(name):
    entry_point = gym.spec(name).entry_point
    return entry_point if isinstance(entry_point, str) else entry_point.__module__


GYMNASIUM = sorted(name for name in gym.registry if _module(name).startswith("gymnasium."))
"""Every id that Gymnasium itself registers."""

BUILDABLE = {
    name: package
    for room, package, never in (
        (".classic_control", None, None),
        (".toy_text", None, None),
        (".box2d", "Box2D", None),
        # The oldest need mujoco-py, which no Python from 3.10 on can build, and one needs MuJoCo 2.
        (".mujoco", "mujoco", re.compile(r".*-v[23]|Pusher-v4")),
    )
    for name in GYMNASIUM
    if room in _module(name) and not (never and never.fullmatch(name))
}
"""Those that can be built wherever the package that they need is installed; the others may need more than there is."""

ATARI = {
    "ALE/Pong-v5": {},
    "ALE/Breakout-v5": {},
    "ALE/Tetris-v5": {"obs_type": "ram"},
    "ALE/MsPacman-v5": {"obs_type": "grayscale", "mode": 1},
    "ALE/Freeway-v5": {"continuous": True},
    "PongNoFrameskip-v4": {},
    "Pong-v4": {},
    "Breakout-v0": {},
}
MINIGRID = (
    "MiniGrid-Empty-8x8-v0",
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-Dynamic-Obstacles-Random-6x6-v0",
    "MiniGrid-FourRooms-v0",
    "MiniGrid-KeyCorridorS3R1-v0",
    "MiniGrid-LavaGapS5-v0",
    "MiniGrid-MemoryS7-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-ObstructedMaze-1Dl-v0",
    "MiniGrid-RedBlueDoors-6x6-v0",
    "BabyAI-GoToRedBall-v0",
    "BabyAI-PutNextS4N1-v0",
    "BabyAI-BossLevel-v0",
)
ROBOTICS = (
    "FetchReach-v4",
    "FetchPush-v4",
    "FetchSlideDense-v4",
    "FetchPickAndPlace-v4",
    "HandReach-v3",
    "HandManipulateBlockRotateZ-v1",
    "HandManipulateEgg_ContinuousTouchSensors-v1",
    "HandManipulatePen_BooleanTouchSensorsDense-v1",
    "AntMaze_UMaze-v5",
    "AntMaze_Medium_Diverse_GR-v4",
    "PointMaze_UMaze-v3",
    "PointMaze_Large_Diverse_GRDense-v3",
    "AdroitHandDoor-v1",
    "AdroitHandPenSparse-v1",
    "FrankaKitchen-v1",
)

_POINT = spaces.Box(-1.0, 1.0, (2,), np.float64)
_ITEM = spaces.Dict({"name": spaces.Text(6), "at": _POINT, "tags": spaces.Sequence(spaces.Text(3))})
COMPOSITES = {
    "nested": spaces.Dict(
        {
            "camera": spaces.Dict({"rgb": spaces.Box(0, 255, (4, 4, 3), np.uint8), "depth": spaces.Box(0, 1, (4, 4))}),
            "joints.raw": spaces.Tuple((_POINT, spaces.MultiBinary(4), spaces.MultiDiscrete([3, 2]))),
            "level": spaces.Discrete(5, start=-2),
        }
    ),
    "text": spaces.Dict({"mission": spaces.Text(20), "image": spaces.Box(0, 9, (3,), np.uint8)}),
    "sequence": spaces.Sequence(_POINT),
    "stack": spaces.Sequence(spaces.Dict({"kind": spaces.Discrete(4), "at": _POINT}), stack=True),
    "sequence of items": spaces.Tuple((spaces.Sequence(_ITEM), spaces.Discrete(2))),
    "graph": spaces.Graph(spaces.Box(0, 1, (3,)), spaces.Discrete(4)),
    "one of": spaces.OneOf((spaces.Discrete(3), _POINT, _ITEM)),
}


class Sampled(gym.Env):
    """What it observes is sampled from a space, its actions are in another, and every fifth step or so ends it."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def _observation(self):
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {"fresh": True}

    def step(self, action):
        terminated, truncated = (self.np_random.random(2) < 0.1).tolist()
        return self._observation(), float(self.np_random.normal()), terminated, truncated, {"action": action}


def needs(name):
    """Import the package that an environment is from, or skip the test where it is not installed."""
    if name in ATARI or name.startswith("ALE/"):
        pytest.importorskip("ale_py")
    elif name.startswith(("MiniGrid-", "BabyAI-")):
        pytest.importorskip("minigrid")
    elif name in ROBOTICS:
        pytest.importorskip("mujoco")
        pytest.importorskip("gymnasium_robotics")
    elif name in GYMNASIUM:
        for room, package in ((".phys2d", "jax"), (".tabular", "jax"), (".box2d", "Box2D"), (".mujoco", "mujoco")):
            if room in _module(name):
                pytest.importorskip(package)


def build(name):
    """An environment as ``gymnasium.make`` makes it, or skip the test where it cannot be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ids with newer versions, and of packages that other packages use
        needs(name)
        try:
            return gym.make(name, **ATARI.get(name, {}))
        except Exception as error:  # whatever it is, nothing of this project has run yet
            pytest.skip(f"cannot be built here: {type(error).__name__}: {error}")
