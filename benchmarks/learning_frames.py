"""TD3+BC on stacks of frames, for ``benchmarks.learning``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from benchmarks.episodes import windows
from benchmarks.frames_scenes import Frames, Scene, camera, scene
from benchmarks.learning_peers import DISCOUNT, Batch
from benchmarks.report import OURS
from benchmarks.suite import Suite
from examples.offline_rl.networks import adam, unscaled
from examples.offline_rl.td3_bc import TD3BC
from gym_replay import Field, MissingExtraError, ReplayBuffer

LENGTH, BATCH, FEATURES = 250, 64, 50
OFFSETS = range(-3, 2)
"""Four frames, and the one after the step."""


class PixelTD3BC:
    """TD3+BC behind a convolutional encoder, which the critic's loss changes.

    The layers are those of V. Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015.
    """

    def __init__(self) -> None:
        self.encoder = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 7 * 7, FEATURES), nn.LayerNorm(FEATURES), nn.Tanh()),
        )
        self.agent = TD3BC(unscaled(FEATURES), gym.spaces.Box(-1, 1, (6,)))
        self.optimizer = adam(self.encoder)

    def update(self, batch: Batch) -> None:
        """One step of the encoder and of what is behind it; ``frames`` are uint8 ``(batch, 5, 84, 84)``."""
        frames = batch["frames"].float().div_(255)
        features = self.encoder(frames[:, :-1])
        with torch.no_grad():
            following = self.encoder(frames[:, 1:])
        seen = features.detach().requires_grad_()
        self.agent.update({**batch, "observation": seen, "next_observation": following})
        self.optimizer.zero_grad()
        features.backward(seen.grad)
        self.optimizer.step()


class Numbers:
    """Actions and rewards that go with frames of episodes: noise."""

    def __init__(self, frames: Frames) -> None:
        generator = np.random.default_rng(5)
        steps = (len(frames), frames.shape[1] - 1)
        self.action = generator.uniform(-1, 1, (*steps, 6)).astype(np.float32)
        self.reward = generator.standard_normal(steps)
        self.terminated = np.zeros(steps, np.bool_)


def in_memory(frames: Frames, numbers: Numbers) -> Iterator[Batch]:
    """All frames as one tensor, in which stacks are indexed."""
    episodes, length = frames.shape[:2]
    flat = torch.from_numpy(frames.reshape(-1, 84, 84))
    action, reward = torch.from_numpy(numbers.action), torch.from_numpy(numbers.reward).float()
    while True:
        episode, step = np.random.randint(0, episodes, BATCH), np.random.randint(3, length - 1, BATCH)  # noqa: NPY002
        rows = (episode * length + step)[:, None] + np.array(OFFSETS)
        discount = torch.full((BATCH,), DISCOUNT)
        yield {
            "frames": flat[rows],
            "action": action[episode, step],
            "n_step_return": reward[episode, step],
            "n_step_discount": discount,
        }


def ours(buffer: ReplayBuffer) -> Iterator[Batch]:
    """Windows of frames, with the action and the reward at the step."""
    names = ("action", "reward", "terminated")
    for batch in windows(buffer, BATCH, offsets={"observation": OFFSETS}, fields=names):
        discount = DISCOUNT * ~batch["terminated"]
        yield {
            "frames": batch["observation"],
            "action": batch["action"],
            "n_step_return": batch["reward"],
            "n_step_discount": discount,
        }


def store(frames: Frames, numbers: Numbers, folder: Path, codec: str | None) -> None:
    """A buffer with all frames, actions and rewards."""
    fields = {
        "observation": Field("uint8", (84, 84), state=True, codec=codec),
        "action": Field("float32", (6,)),
        "reward": "float64",
        "terminated": "bool",
    }
    with ReplayBuffer(folder, fields=fields) as buffer:
        for k, shown in enumerate(frames):
            rows = {name: getattr(numbers, name)[k] for name in ("action", "reward", "terminated")}
            buffer.store_episode(observation=shown, **rows)


def frame_batches(
    suite: Suite, count: int, stack: ExitStack, *, smoke: bool
) -> tuple[dict[str, Iterator[Batch]], list[str]]:
    """Batches of frames from memory, and from buffers with the codecs that there are; and notes."""
    length = min(LENGTH, max(count // 10, 8))
    notes = []
    if not smoke and find_spec("ale_py") and find_spec("cv2"):
        shown = scene("mspacman84", length, count * 84 * 84)
    else:
        if not smoke:
            notes.append("MsPacman: left out, it needs ale-py and opencv-python-headless; a noisy camera is there")
        made = np.stack(list(islice(camera(84, 84), count // length * length)))
        shown = Scene("A noisy camera, 84x84", made.reshape(-1, length, 84, 84))
    notes.append(f"frames: {shown.title}")
    numbers = Numbers(shown.frames)
    sources = {"tensors in memory": in_memory(shown.frames, numbers)}
    for name, codec in {f"{OURS}, raw": None, OURS: "zstd"}.items():
        try:
            store(shown.frames, numbers, suite.folder / name, codec)
        except MissingExtraError as error:
            suite.leave_out(f"{name}, zstd: {error}")
            continue
        buffer = stack.enter_context(ReplayBuffer.from_folder(suite.folder / name, read_only=True))
        sources[name] = ours(buffer)
    for name, batches in sources.items():
        check(name, shown.frames, numbers, next(batches))
    return sources, [*notes, f"{OURS}: frames stored with zstd"]


def check(name: str, frames: Frames, numbers: Numbers, batch: Batch) -> None:
    """Raise AssertionError unless the stacks are those of the actions' steps."""
    found = {row.tobytes(): place for place, row in enumerate(numbers.action.reshape(-1, 6))}
    places = np.array([found[np.asarray(row).tobytes()] for row in batch["action"]])
    episode, step = np.divmod(places, numbers.action.shape[1])
    expected = frames[episode[:, None], step[:, None] + np.array(OFFSETS)]
    np.testing.assert_array_equal(np.asarray(batch["frames"]), expected, name)
