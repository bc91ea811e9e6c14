"""The folder of a LeRobot dataset: what its files are called, and reading them as if a stranger had written them.

The facts are those of LeRobot's own code, codebase versions v3.0 and v2.1 (``lerobot/datasets/utils.py`` and
``lerobot/scripts/convert_dataset_v21_to_v30.py``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Generic, Protocol, TypeVar

from gym_replay.errors import BufferNotFoundError, CorruptBufferError, UnsupportedFormatError
from gym_replay.files.documents import object_of_file, read_object
from gym_replay.files.folders import folder_of

VERSION = "v3.0"
"""The codebase version that is written."""

OLD_VERSIONS = ("v2.0", "v2.1")
"""Codebase versions with a file for each episode, which are read too."""

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
OLD_EPISODES, OLD_TASKS = "meta/episodes.jsonl", "meta/tasks.jsonl"
SUBTASKS = "meta/subtasks.parquet"

DERIVED = (STATS, "meta/episodes_stats.jsonl")
"""Files of statistics, which follow from the values."""

FILES_IN_CHUNK = 1000
DATA_MB, VIDEO_MB = 100, 200
"""Megabytes that a file has at most before the next one is begun: LeRobot's own numbers."""

DOWNLOAD = "`hf download NAME --repo-type dataset --local-dir FOLDER`"
"""The command of huggingface_hub that fetches a dataset."""

BOOKKEEPING = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The features that each dataset has, and their dtypes."""

_MEGABYTE = 1 << 20
_PART = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")
_LONGEST_LINE = 1 << 22


def megabytes(count: int) -> int:
    """So many megabytes in bytes."""
    return count * _MEGABYTE


def filled(template: str, **values: int | str) -> str:
    """A template of a path with its values.

    Only ``{name}`` and ``{name:03d}`` are known: what Python's own ``format`` would look up is nobody's business.

    Raises:
        CorruptBufferError: the template asks for something else.

    Example:
        >>> filled(DATA, chunk_index=0, file_index=12)
        'data/chunk-000/file-012.parquet'
    """

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise CorruptBufferError(f"the path {template!r:.200} has a part {found[0]!r} that nothing is known of")
        return str(values[found[1]]).zfill(int(found[2] or 0))

    path = _PART.sub(value, template)
    if "{" in path or "}" in path:
        raise CorruptBufferError(f"the path {template!r:.200} is none of LeRobot's: it has other braces")
    return path


class Closable(Protocol):
    """A file that is written to, until it is closed."""

    def close(self) -> None: ...


F = TypeVar("F", bound=Closable)


class RollingFiles(Generic[F]):
    """Numbered files, a new one where the present one is large enough.

    Args:
        root: the folder of the dataset.
        template: of the paths.
        largest: bytes of a file that nothing more is added to.
        make: opens a new file.
        names: further values of the template.
    """

    def __init__(self, root: Path, template: str, largest: int, make: Callable[[Path], F], **names: str) -> None:
        self._root, self._template, self._largest, self._make, self._names = root, template, largest, make, names
        self._number = -1
        self._file: F | None = None

    @property
    def place(self) -> dict[str, int]:
        """The numbers of the present file, and of the folder that it is in."""
        chunk, file = divmod(self._number, FILES_IN_CHUNK)
        return {"chunk_index": chunk, "file_index": file}

    @property
    def _path(self) -> Path:
        return self._root / filled(self._template, **self._names, **self.place)

    def begin(self) -> F:
        """The file for what is to be in one file."""
        if self._file is not None and self._path.stat().st_size >= self._largest:
            self.close()
        if self._file is None:
            self._number += 1
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._make(self._path)
        return self._file

    def close(self) -> None:
        """End the present file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


class DatasetFolder:
    """A folder that somebody else filled.

    Args:
        folder: of the dataset.

    Attributes:
        root: its absolute path.

    Raises:
        BufferNotFoundError: there is no dataset.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.root = folder_of(folder)
        if not (self.root / INFO).is_file():
            remedy = "" if self.root.exists() else f"; nothing is downloaded: {DOWNLOAD} fetches one from the hub"
            raise BufferNotFoundError(2, f"no LeRobot dataset here: there is no {INFO}{remedy}", str(self.root))
        self._homes = [self.root.resolve()]
        if self.root.parent.name == "snapshots":  # of the hub's cache, whose files are links to what they hold
            self._homes.append(self.root.resolve().parent.parent / "blobs")

    def path(self, relative: str) -> Path:
        """A file of the dataset.

        Raises:
            CorruptBufferError: the path leads out of the folder, also by a link, or there is no such file.
        """
        parts = PurePosixPath(relative)
        if parts.is_absolute() or ".." in parts.parts or "\0" in relative or len(relative) > 4000:
            raise CorruptBufferError(f"{self.root}: the path {relative!r:.200} leads out of the folder")
        path = self.root / parts
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise CorruptBufferError(f"{path}: this file of the dataset is missing") from None
        if not any(real.is_relative_to(home) for home in self._homes):
            raise CorruptBufferError(f"{path}: a link leads out of the folder, and is not followed")
        if not real.is_file():
            raise CorruptBufferError(f"{path}: expected a file")
        return path

    def has(self, relative: str) -> bool:
        """Whether there is something of this name."""
        return os.path.lexists(self.root / relative)

    def json(self, relative: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            CorruptBufferError: it is missing, too large, or none.
        """
        return object_of_file(self.path(relative))

    def lines(self, relative: str) -> Iterator[dict[str, Any]]:
        """The JSON objects of a file that has one on each line.

        Raises:
            CorruptBufferError: it is missing, or a line is none.
        """
        path = self.path(relative)
        with open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                if line.strip():
                    yield read_object(line, path)


class Info:
    """What ``meta/info.json`` says, checked.

    Attributes:
        version: the codebase version.
        is_old: whether each episode has files of its own.
        fps: frames a second.
        features: by key what LeRobot says of it.
        num_episodes, num_frames: how many there are said to be.
        chunk_size: files of one folder.
        data_path, video_path: templates of paths.
        robot_type: a word for the robot, or None.

    Raises:
        UnsupportedFormatError: it is of another version.
        CorruptBufferError: an entry is missing, or is not what it should be.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self._path = folder.root / INFO
        self._found = folder.json(INFO)
        self.version = self._take("codebase_version", str)
        if self.version not in (VERSION, *OLD_VERSIONS):
            raise UnsupportedFormatError(
                f"{self._path}: codebase version {self.version!r:.40}, and {', '.join((*OLD_VERSIONS, VERSION))} are "
                "read; convert it with LeRobot"
            )
        self.is_old = self.version in OLD_VERSIONS
        self.fps = self._take("fps", int, float)
        if not 0 < self.fps <= 1e6:
            raise self._fault("fps", "a positive number")
        self.num_episodes, self.num_frames = (self._count(f"total_{name}") for name in ("episodes", "frames"))
        self.chunk_size = self._count("chunks_size", FILES_IN_CHUNK) or FILES_IN_CHUNK
        self.data_path = self._take("data_path", str)
        self.video_path: str | None = self._take("video_path", str, type(None), default=None)
        self.robot_type: str | None = self._take("robot_type", str, type(None), default=None)
        features = self._take("features", dict)
        self.features: dict[str, dict[str, Any]] = {key: self._feature(key, one) for key, one in features.items()}

    def _take(self, name: str, *types: type, default: Any = ...) -> Any:
        value = self._found.get(name, default)
        if value is ... or not isinstance(value, types) or isinstance(value, bool):
            raise self._fault(name, " or ".join(kind.__name__ for kind in types))
        return value

    def _count(self, name: str, default: Any = ...) -> int:
        count: int = self._take(name, int, default=default)
        if not 0 <= count < 1 << 48:
            raise self._fault(name, "a number from 0 on")
        return count

    def _fault(self, name: str, expected: str) -> CorruptBufferError:
        return CorruptBufferError(
            f"{self._path}: {name!r:.100}: expected {expected}, got {self._found.get(name)!r:.60}"
        )

    def _feature(self, key: str, feature: Any) -> dict[str, Any]:
        """One feature, with its dtype a string and its shape a tuple."""
        given: dict[str, Any] = feature if isinstance(feature, dict) else {}
        shape: Any = given.get("shape")
        dtype: Any = given.get("dtype")
        is_shape = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 31 for size in shape)
        if not isinstance(dtype, str) or not is_shape or len(shape) > 32:
            raise CorruptBufferError(
                f"{self._path}: feature {key!r:.100}: expected a dtype and a shape, got {feature!r:.120}"
            )
        return {**given, "dtype": dtype, "shape": tuple(shape)}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises of a damaged file into a CorruptBufferError that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, CorruptBufferError):
            raise
        reason = str(error).partition("\n")[0]
        raise CorruptBufferError(f"{path}: it cannot be read: {reason:.300}") from None
