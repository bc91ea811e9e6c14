"""Where imported data goes: a folder that appears whole or not at all, and a report of what is not in it."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer, open_buffer
from gym_replay.errors import EmptyBufferError, NotABufferError
from gym_replay.files.folders import folder_of
from gym_replay.files.new_folder import new_folders
from gym_replay.interop.old_data import FLAGS, check_ends


@dataclass(frozen=True)
class ImportReport:
    """What an import made, and what it could not know.

    Attributes:
        folder: the new buffer.
        num_episodes, num_steps: what is in it.
        not_known: what the source did not say and the buffer therefore does not either.
        left_out: what the source had and the buffer has not.
        doubtful: what the source says that is hardly meant so; it is stored as it is.

    Example:
        >>> print(ImportReport(Path("data/old"), 2, 30, ("the last observations",), ()))
        data/old: 2 episodes, 30 steps
        not known: the last observations
    """

    folder: Path
    num_episodes: int
    num_steps: int
    not_known: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.num_episodes} episodes, {self.num_steps} steps"]
        lines += [f"not known: {each}" for each in self.not_known]
        lines += [f"left out: {each}" for each in self.left_out]
        return "\n".join(lines + [f"doubtful: {each}" for each in self.doubtful])


class NewBuffer:
    """A buffer in the making, and what is noted of it for the report.

    Attributes:
        buffer: the buffer itself.
        incomplete, without_final: how many episodes were cut, and how many lack their last observation.
    """

    def __init__(self, buffer: ReplayBuffer, target: Path) -> None:
        self.buffer, self._target = buffer, target
        self.num_episodes = self.num_steps = self.incomplete = self.without_final = 0
        self._not_finite: Counter[str] = Counter()
        self._both_flags = 0

    def store(self, arrays: Mapping[str, Any], length: int, *, complete: bool, has_final: bool) -> None:
        """Add an episode of ``length`` transitions.

        Raises:
            FieldError: it does not fit the fields, or is more than one episode.
        """
        check_ends(arrays, length)
        for name, values in arrays.items():
            is_float = isinstance(values, np.ndarray) and values.dtype.kind == "f"
            self._not_finite[name] += bool(is_float and not np.isfinite(values).all())
        self._both_flags += all(name in arrays and bool(arrays[name][-1:].any()) for name in FLAGS)
        self.buffer.put_episode(arrays, complete=complete)
        self.num_episodes += 1
        self.num_steps += length
        self.incomplete += not complete
        self.without_final += not has_final

    def report(
        self, not_known: Sequence[str], left_out: Sequence[str] = (), doubtful: Sequence[str] = ()
    ) -> ImportReport:
        """What was made, with what is known to be missing from it.

        Raises:
            EmptyBufferError: nothing was.
        """
        if not self.num_episodes:
            raise EmptyBufferError(f"there is no transition to import, so {self._target} is not made")
        found = list(not_known)
        if self.without_final:
            found.append(
                f"the last observation of {self.without_final} episodes: their last transition is no n-step sample"
            )
        if self.incomplete:
            found.append(f"how {self.incomplete} episodes ended: they are stored as cut (Episode.complete is False)")
        odd = [f"{name}: NaN or infinite in {count} episodes" for name, count in self._not_finite.items() if count]
        if self._both_flags:
            odd.append(f"{self._both_flags} episodes are both terminated and truncated; loaders take the first")
        return ImportReport(
            self._target, self.num_episodes, self.num_steps, tuple(found), tuple(left_out), (*doubtful, *odd)
        )


def check_new(target: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that does not exist yet, or is empty.

    Raises:
        NotABufferError: there is something.
    """
    path = folder_of(target)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise NotABufferError(errno.EEXIST, "an import makes a new folder; choose one that does not exist", str(path))
    return path


@contextmanager
def new_buffer(target: Path, config: Mapping[str, Any]) -> Iterator[NewBuffer]:
    """A buffer that gets its name when all is in it; an exception inside leaves nothing behind.

    Args:
        target: the folder that it will be.
        config: ``fields``, and other attributes of the buffer's metadata.

    Raises:
        NotABufferError: something has appeared at the target meanwhile.
        StorageError: the operating system refused.
    """
    with new_folders(target) as (new,):
        with open_buffer(new.folder, config, overwrite=False) as buffer:
            yield NewBuffer(buffer, target)
        new.publish()
