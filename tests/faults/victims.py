"""The sound buffers that hostile folders are made from, and what their episodes hold."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from format_helpers import change_metadata, read_metadata

from gym_replay import Episode, Field, Ragged, RecordToBuffer, ReplayBuffer

from .scenarios import FIELDS, RAGGED_FIELDS, RAGGED_META, ragged_episode, rows_of

NESTED_ID = "gym_replay_tests/Nested-v0"
USER_FILES = {
    "notes.txt": b"mine, and not listed in the metadata",
    "mine/data.npy": b"no array at all",
    "steps/notes.txt": b"mine too",
}
"""Files in every folder that no metadata lists."""


@dataclass(frozen=True)
class Original:
    """One episode: bytes of each field's rows (of ragged ones with the size before each), and of each meta value."""

    fields: dict[str, bytes]
    meta: dict[str, bytes]


@dataclass(frozen=True)
class Victim:
    """A sound buffer.

    Attributes:
        episodes: all that were ever committed and not evicted, by id; deleted ones too.
        live: the ids that a reader must show.
        header: length of each array file's header.
        row_nbytes: bytes of one row of each array file.
    """

    name: str
    folder: Path
    episodes: dict[int, Original]
    live: tuple[int, ...]
    arrays: tuple[str, ...]
    header: dict[str, int] = field(default_factory=dict)
    row_nbytes: dict[str, int] = field(default_factory=dict)


@dataclass
class Site:
    """Where an attack takes place.

    Attributes:
        folder: the copy of the victim that is attacked.
        outside: a folder beside it, which nobody may touch.
        forged: set where the attack replaces the buffer by one with episodes of its own.
        endless: set where the folder holds more than can be read through in time: it is only opened and loaded.
    """

    folder: Path
    outside: Path
    victim: Victim
    random: random.Random
    forged: bool = False
    endless: bool = False


Attack = Callable[[Site], None]
Attacks = Iterator[tuple[str, Attack]]


class Nested(gym.Env):
    """A space with keys that need encoding; episodes of 3 to 7 steps."""

    observation_space = gym.spaces.Dict(
        {
            "camera": gym.spaces.Dict({"rgb": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)}),
            "a.b": gym.spaces.Tuple((gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Discrete(5, start=-2))),
        }
    )
    action_space = gym.spaces.Dict({"turn": gym.spaces.MultiDiscrete([3, 4]), "go": gym.spaces.MultiBinary(2)})

    def __init__(self, size: int = 3) -> None:
        self.size = size

    def _observe(self) -> dict[str, Any]:
        rgb = self.np_random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        pose = self.np_random.normal(size=3).astype(np.float32)
        return {"camera": {"rgb": rgb}, "a.b": (pose, np.int64(self.t % 5 - 2))}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple:
        super().reset(seed=seed)
        self.t, self.length = 0, self.size + int(self.np_random.integers(5))
        return self._observe(), {}

    def step(self, action: dict) -> tuple:
        self.t += 1
        return self._observe(), self.t / 3, self.t == self.length, False, {}


def _store(buffer: ReplayBuffer, numbers: range) -> None:
    for number in numbers:
        length = 2 + number % 4
        label = np.array([number, -number], np.float32)
        buffer.store_episode(**rows_of(number, length), number=number, label=label)


def _stored(folder: Path, count: int, **options: Any) -> None:
    meta = {"number": "int", "label": Field("float32", (2,))}
    with ReplayBuffer(folder, fields=FIELDS, meta_fields=meta, **options) as buffer:
        _store(buffer, range(count))


def _plain(folder: Path) -> None:
    _stored(folder, 5)


def _empty(folder: Path) -> None:
    _stored(folder, 0)


def _ring(folder: Path) -> None:
    _stored(folder, 9, circular=True, max_episodes=4)


def _step_ring(folder: Path) -> None:
    _stored(folder, 9, circular=True, max_steps=14)


def _ragged(folder: Path, count: int = 6, **options: Any) -> None:
    with ReplayBuffer(folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META, **options) as buffer:
        for number in range(count):
            buffer.store_episode(**ragged_episode(number, 2 + number % 4))


def _ragged_ring(folder: Path) -> None:
    _ragged(folder, 11, circular=True, max_episodes=5)


def _recorded(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium finds the action space unusual
        env = RecordToBuffer(gym.make(NESTED_ID, size=4), folder, max_timesteps=50)
        env.action_space.seed(0)
        for seed in range(3):
            env.reset(seed=seed)
            while not any(env.step(env.action_space.sample())[2:4]):
                pass
        env.close()


def _updated(folder: Path) -> None:
    _stored(folder, 4)
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.update(reward=[np.full(len(e), float(e.id)) for e in buffer], number=np.arange(10, 14))
        buffer.add_field("advantage", "float64", [rows_of(e.id, len(e))["reward"] for e in buffer])


def _deleted(folder: Path) -> None:
    _stored(folder, 6)


def _delete(folder: Path) -> None:
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.delete([1, 4])


def _interrupted(folder: Path) -> None:
    _stored(folder, 4)


def _interrupt(folder: Path) -> None:
    """As a writer leaves it that was killed between the metadata and the renames of an update."""
    for name in ("steps/reward.npy", "commit.npy"):
        content = (folder / name).read_bytes()
        (folder / (name + ".new")).write_bytes(content)
        (folder / name).write_bytes(content[:-8] + bytes(8) if name.startswith("steps") else content)
    metadata = read_metadata(folder)
    change_metadata(folder, pending=["steps/reward.npy", "commit.npy"], revision=metadata["revision"] + 1)


_MAKERS = {
    "plain": (_plain, None),
    "empty": (_empty, None),
    "ring": (_ring, None),
    "step ring": (_step_ring, None),
    "recorded": (_recorded, None),
    "updated": (_updated, None),
    "deleted": (_deleted, _delete),
    "interrupted": (_interrupted, _interrupt),
    "ragged": (_ragged, None),
    "ragged ring": (_ragged_ring, None),
}


def original(episode: Episode) -> Original:
    """What an episode holds, as bytes."""
    return Original(
        {name: bytes_of(values) for name, values in episode.items()},
        {
            name: value.encode("utf-8", "surrogatepass") if isinstance(value, str) else np.asarray(value).tobytes()
            for name, value in episode.meta.items()
        },
    )


def bytes_of(values: np.ndarray | Ragged) -> bytes:
    """The rows of a field, a shorter stretch of which is the beginning of a longer one."""
    if isinstance(values, Ragged):
        return b"".join(len(row).to_bytes(8, "little") + row.tobytes() for row in values)
    return values.tobytes()


def _read(folder: Path) -> dict[int, Original]:
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return {episode.id: original(episode) for episode in buffer}


def build(root: Path) -> dict[str, Victim]:
    """All victims, in folders below ``root``."""
    if NESTED_ID not in gym.registry:
        gym.register(NESTED_ID, entry_point=Nested)
    victims = {}
    for name, (make, change) in _MAKERS.items():
        folder = root / name.replace(" ", "_")
        make(folder)
        episodes = _read(folder)
        if change is not None:
            change(folder)
        for path, content in USER_FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        arrays = tuple(
            sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy") if path.parent.name != "mine")
        )
        header, row_nbytes = {}, {}
        for path in arrays:
            mapped = np.load(folder / path, mmap_mode="r")
            header[path], row_nbytes[path] = mapped.offset, mapped.itemsize * int(np.prod(mapped.shape[1:]))
        victims[name] = Victim(name, folder, episodes, tuple(_read(folder)), arrays, header, row_nbytes)
    return victims
