"""Makes the golden folders: ``PYTHONPATH=tests python tests/golden/make.py``. Only for a new version of the format.

``plain`` is what a recorder leaves behind with no limits, one of its episodes cut; ``ring`` has lost its oldest
episodes; ``words`` has ragged fields and strings, ``frames`` fields with codecs, and both were stored by hand. All
values are sums of powers of two, and so the same on every machine.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
from internals import recorded_schema

from gym_replay import Field, RecordToBuffer, ReplayBuffer

HERE = Path(__file__).parent
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "ring": {"circular": True, "max_steps": 40, "max_timesteps": 20}}
EPISODES = {"plain": 8, "ring": 14}
CUT = 3
"""The episode that a reset cuts after its first two steps."""
FIXED = uuid.UUID("00000000-0000-4000-8000-000000000001")
FIRST_META = {
    name: recorded_schema.RECORDER_META[name] for name in ("episode_seed", "episode_return", "episode_complete")
}
META = {"skill": Field("float32", (2,)), "source": Field("uint8", default=7)}
EXTRA = {"log_prob": Field("float32", default=-1.0)}


def length_of(number: int) -> int:
    return 2 if number == CUT else 1 + (number * 5) % 13


def observation(number: int, t: int) -> dict[str, Any]:
    base = 32 * number + t
    return {
        "camera": {"rgb": (base + np.arange(48)).astype(np.uint8).reshape(4, 4, 3)},
        "a.b": np.float32([base, base + 0.25, -base]),
        "touch": np.array([base % 2, base // 2 % 2], np.int8),
        "place": (base % 5, np.array([base / 4], np.float64)),
    }


def action(number: int, t: int) -> dict[str, Any]:
    return {"grip": np.int64(3 + (number + t) % 4), "arm": np.float32([t / 8, -number / 2])}


def reward(number: int, t: int) -> float:
    return number - t / 16


def log_prob(number: int, t: int) -> float:
    return -1.0 if t % 3 == 0 else -(number + t) / 4


class Golden(gym.Env):
    """Episode k, counted from 0, returns the values of number k; every third one is truncated."""

    observation_space = gym.spaces.Dict(
        {
            "camera": gym.spaces.Dict({"rgb": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
            "a.b": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "touch": gym.spaces.MultiBinary(2),
            "place": gym.spaces.Tuple((gym.spaces.Discrete(5), gym.spaces.Box(0.0, 512.0, (1,), np.float64))),
        }
    )
    action_space = gym.spaces.Dict(
        {"grip": gym.spaces.Discrete(4, start=3), "arm": gym.spaces.Box(-64.0, 64.0, (2,), np.float32)}
    )

    def __init__(self) -> None:
        self.number = -1

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        self.number, self.t = self.number + 1, 0
        return observation(self.number, 0), {}

    def step(self, action: dict) -> tuple:
        number, t = self.number, self.t
        self.t += 1
        ends = self.t == length_of(number) and number != CUT
        return observation(number, t + 1), reward(number, t), ends and number % 3 != 2, ends and number % 3 == 2, {}


def record(folder: Path, kind: str) -> None:
    """Write a golden buffer, with the recorder's first meta fields."""
    with mock.patch("uuid.uuid4", return_value=FIXED), mock.patch.object(recorded_schema, "RECORDER_META", FIRST_META):
        env = RecordToBuffer(Golden(), folder, meta_fields=META, extra_fields=EXTRA, **KINDS[kind])
    for number in range(EPISODES[kind]):
        env.reset(seed=number if number % 2 else None)
        if number % 2:
            env.annotate(skill=[number, 0.5], source=number)
        for t in range(length_of(number)):
            if t % 3:
                env.annotate_step(log_prob=log_prob(number, t))
            env.step(action(number, t))
    env.close()
    (folder / "writer.lock").unlink()


WORDS_FIELDS = {
    "words": Field("uint8", state=True, ragged=True),
    "points": Field("float32", (2,), ragged=True),
    "x": Field("int64"),
}
WORDS_META = {"task": Field("str"), "score": Field("float64")}


def words_episode(number: int) -> dict[str, Any]:
    """Episode k has k+1 transitions; the number of elements goes from none to four."""
    length = number + 1
    return {
        "words": [np.arange(number, number + (t + number) % 5, dtype=np.uint8) for t in range(length + 1)],
        "points": [np.full((t % 3, 2), number + t / 4, np.float32) for t in range(length)],
        "x": np.arange(length, dtype=np.int64) * number,
        "task": ["", "lift the cup", "öffne die Tür", "lift the cup"][number],
        "score": number / 2,
    }


def record_words(folder: Path) -> None:
    """Write the golden buffer of ragged fields and strings."""
    with mock.patch("uuid.uuid4", return_value=FIXED):
        buffer = ReplayBuffer(folder, fields=WORDS_FIELDS, meta_fields=WORDS_META)
    for number in range(4):
        buffer.store_episode(**words_episode(number))
    buffer.close()
    (folder / "writer.lock").unlink()


FRAMES_FIELDS = {
    "pixels": Field("uint8", (6, 5, 3), state=True, codec="zstd"),
    "depth": Field("float32", (4, 3), default=0.5, codec={"id": "lz4", "acceleration": 2}),
    "x": Field("int64"),
}


def frames_episode(number: int) -> dict[str, Any]:
    """T = number + 2; in the second episode no depth is given."""
    length = number + 2
    pixels = (np.arange(length + 1)[:, None, None, None] + np.arange(90).reshape(6, 5, 3) * number).astype(np.uint8)
    depth = (np.arange(length)[:, None, None] / 4 + np.arange(12).reshape(4, 3) / 8 + number).astype(np.float32)
    values = {"pixels": pixels, "depth": depth, "x": np.arange(length) - number}
    return {name: value for name, value in values.items() if (name, number) != ("depth", 1)}


def record_frames(folder: Path) -> None:
    """Write the golden buffer of fields with codecs."""
    with mock.patch("uuid.uuid4", return_value=FIXED):
        buffer = ReplayBuffer(folder, fields=FRAMES_FIELDS)
    for number in range(3):
        buffer.store_episode(**frames_episode(number))
    buffer.close()
    (folder / "writer.lock").unlink()


def expected(number: int) -> tuple[dict[str, np.ndarray], dict[str, Any], bool]:
    """Fields and meta fields in the stored order (a Dict space sorts its keys), and whether it is complete."""
    length = length_of(number)
    seen = [observation(number, t) for t in range(length + 1)]
    acted = [action(number, t) for t in range(length)]
    ended = np.arange(length) == length - 1
    truncated = number % 3 == 2 or number == CUT
    fields = {
        "observation.a%2Eb": np.stack([o["a.b"] for o in seen]),
        "observation.camera.rgb": np.stack([o["camera"]["rgb"] for o in seen]),
        "observation.place.0": np.array([o["place"][0] for o in seen], np.int64),
        "observation.place.1": np.stack([o["place"][1] for o in seen]),
        "observation.touch": np.stack([o["touch"] for o in seen]),
        "action.arm": np.stack([a["arm"] for a in acted]),
        "action.grip": np.array([a["grip"] for a in acted], np.int64),
        "reward": np.array([reward(number, t) for t in range(length)]),
        "terminated": ended & (not truncated),
        "truncated": ended & truncated,
        "log_prob": np.array([log_prob(number, t) for t in range(length)], np.float32),
    }
    meta = {
        "episode_seed": number if number % 2 else -1,
        "episode_return": float(fields["reward"].sum()),
        "episode_complete": number != CUT,
        "skill": [number, 0.5] if number % 2 else [0.0, 0.0],
        "source": number if number % 2 else 7,
    }
    return fields, meta, number != CUT


def live(kind: str) -> Iterator[int]:
    """The ids that must be there: all, or the last ones that fit into the ring."""
    numbers = list(range(EPISODES[kind]))
    limit = KINDS[kind].get("max_steps")
    while limit is not None and sum(map(length_of, numbers)) > limit:
        numbers.pop(0)
    return iter(numbers)


if __name__ == "__main__":
    for kind in KINDS:
        shutil.rmtree(HERE / kind, ignore_errors=True)
        record(HERE / kind, kind)
    shutil.rmtree(HERE / "words", ignore_errors=True)
    record_words(HERE / "words")
    shutil.rmtree(HERE / "frames", ignore_errors=True)
    record_frames(HERE / "frames")
