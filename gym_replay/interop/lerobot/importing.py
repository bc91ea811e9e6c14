"""A LeRobot dataset read into a buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.door import Encoded, Ragged, as_stored
from gym_replay.errors import CorruptBufferError
from gym_replay.files.video import VideoReader
from gym_replay.interop.lerobot import layout
from gym_replay.interop.lerobot.features import (
    DONE,
    IMPORTED,
    REWARD,
    SUBTASK,
    TASK,
    TRUNCATED,
    Feature,
    Found,
    found_features,
)
from gym_replay.interop.lerobot.images import EXTRA, from_bytes
from gym_replay.interop.lerobot.layout import DatasetFolder, Info, filled, naming
from gym_replay.interop.lerobot.rest import REST, Rest, with_last_row
from gym_replay.interop.lerobot.tables import RowReader, find_pyarrow, from_arrow, read_batches, read_tasks
from gym_replay.interop.old_data import (
    FLAGS,
    ImportReport,
    NewBuffer,
    about,
    check_new,
    episode_flags,
    new_buffer,
    stored_fields,
)
from gym_replay.notices import bar, names_nearest_keyword
from gym_replay.schema.arrays import Array
from gym_replay.schema.codec_choice import Codecs, with_codecs
from gym_replay.schema.fields import Field, require_codecs


@names_nearest_keyword
def import_lerobot(
    folder: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    codecs: Codecs | None = None,
    progress: bool = True,
) -> ImportReport:
    """Read a LeRobot dataset of this machine into a new buffer, with its images frame by frame.

    A dataset that :func:`export_lerobot` wrote gives the buffer that was exported, bit for bit but for the frames of
    lossy videos. Of other ones, of codebase version v3.0, v2.1 or v2.0, each feature of numbers or images becomes a
    field: ``observation.state`` the state field ``observation.state``, ``next.reward`` the field ``reward``. What such
    a dataset does not tell is not made up: the last observation of each episode, rewards, and whether it terminated or
    was truncated; the report says what is not known, and docs/lerobot.md has the tables. Frames of videos are those
    nearest to the timestamps of the rows. The folder appears when the buffer is complete.

    Args:
        folder: of the dataset, with ``meta/info.json`` in it. Nothing is downloaded.
        target: the new buffer; nothing may be there, or an empty folder.
        codecs: what images are stored with, as :class:`RecordToBuffer` takes it: ``{"images": "png"}``, or
            ``{"observation.images.top": "raw"}``. None for what was exported, and else for ``"zstd"``.
        progress: show a bar where it takes longer than a second.

    Returns:
        What was made, and what the dataset does not tell.

    Raises:
        MissingExtraError: pyarrow is not installed, or PyAV, Pillow or a codec's package for its images.
        BufferNotFoundError: there is no dataset.
        UnsupportedFormatError: it is of another codebase version.
        CorruptBufferError: a file is damaged or missing, a count is wrong, or a path leads out of the folder.
        FieldError: its features cannot be the fields of one buffer, or a codec does not go with a field.
        EmptyBufferError: there is no episode.
        NotABufferError: there is something at the target.
        StorageError: the disk is full, or the operating system refused for another reason.

    Example:
        >>> report = import_lerobot("data/pusht-lerobot", "data/pusht")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    find_pyarrow()
    path = check_new(target)
    source = DatasetFolder(folder)
    with ExitStack() as stack:
        dataset = _Dataset(source)
        rest, stale = _rest_of(source, dataset, stack)
        importer = _Exported(dataset, rest) if rest is not None else _Foreign(dataset)
        config = importer.config(codecs)
        require_codecs(config["fields"])
        reader = _Reader(dataset, importer.features, config["fields"])
        stack.callback(reader.close)
        with new_buffer(path, config) as new:
            with bar(dataset.info.num_episodes, "import", "episode", progress=progress) as shown:
                for entry in dataset.entries():
                    importer.store(new, entry, reader.take(entry))
                    shown.update()
            return new.report(importer.not_known(), [*stale, *importer.left_out()], reader.doubtful())


def _rest_of(source: DatasetFolder, dataset: _Dataset, stack: ExitStack) -> tuple[Rest | None, list[str]]:
    """What an export left beside the dataset, if it belongs to the dataset as it is now; else a line that says so."""
    if not source.has(REST):
        return None, []
    rest = Rest(source)
    stack.callback(rest.close)
    fault = rest.mismatch(dataset.info, (entry.length for entry in dataset.entries()))
    if fault is None:
        return rest, []
    return None, [f"the folder {REST}: the dataset was changed after its export: {fault}"]


# --- the dataset ---


@dataclass(frozen=True)
class _Entry:
    """Where an episode is.

    Args:
        index, length: of the episode.
        tasks: what is done in it.
        data: path of the file with its rows.
        films: by key of a video, the path of the file, and at how many seconds the episode begins in it.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data: str
    films: Mapping[str, tuple[str, float]]


class _Dataset:
    """What the files below ``meta`` say.

    Attributes:
        folder, info: where it is, and ``meta/info.json``.
        tasks, subtasks: by number; the features have numbers of them.
    """

    def __init__(self, folder: DatasetFolder) -> None:
        self.folder, self.info = folder, Info(folder)
        self.tasks = self._read_tasks()
        self.videos = [key for key, entry in self.info.features.items() if entry["dtype"] == "video"]
        if self.videos and self.info.video_path is None:
            raise CorruptBufferError(f"{folder.root / layout.INFO}: there are videos, and no 'video_path'")
        if self.videos and "timestamp" not in self.info.features:
            raise CorruptBufferError(f"{folder.root / layout.INFO}: there are videos, and no feature 'timestamp'")
        self.subtasks = read_tasks(folder.path(layout.SUBTASKS), SUBTASK) if folder.has(layout.SUBTASKS) else {}

    def _read_tasks(self) -> dict[int, str]:
        if not self.info.is_old:
            return read_tasks(self.folder.path(layout.TASKS)) if self.folder.has(layout.TASKS) else {}
        tasks: dict[int, str] = {}
        if self.folder.has(layout.OLD_TASKS):
            for line in self.folder.lines(layout.OLD_TASKS):
                number, text = line.get("task_index"), line.get("task")
                if type(number) is not int or not isinstance(text, str):
                    raise self._fault(layout.OLD_TASKS, f"expected a task and its number, got {line!r:.80}")
                tasks[number] = text
        return tasks

    def unknown(self) -> list[str]:
        """Lines about the files below ``meta`` that are not read."""
        known = (layout.INFO, layout.TASKS, layout.SUBTASKS, layout.OLD_TASKS, layout.OLD_EPISODES, *layout.DERIVED)
        files = sorted(f"meta/{entry.name}" for entry in os.scandir(self.folder.root / "meta") if entry.is_file())
        return [f"{path}: no file of LeRobot's own has this name" for path in files if path not in known]

    def _fault(self, relative: str, reason: str) -> CorruptBufferError:
        return CorruptBufferError(f"{self.folder.root / relative}: {reason}")

    def entries(self) -> Iterator[_Entry]:
        """The episodes in their order, each time from the files.

        Raises:
            CorruptBufferError: one is missing, or there are more or less than is said.
        """
        frames = count = 0
        for entry in self._old_entries() if self.info.is_old else self._entries():
            if entry.index != count:
                raise self._fault("meta", f"expected episode {count} next in the table of episodes, got {entry.index}")
            if not 1 <= entry.length < 1 << 40:
                raise self._fault("meta", f"episode {count} has {entry.length} frames")
            count += 1
            frames += entry.length
            yield entry
        if (count, frames) != (self.info.num_episodes, self.info.num_frames):
            raise self._fault(
                layout.INFO,
                f"it says that there are {self.info.num_episodes} episodes with {self.info.num_frames} frames, and "
                f"there are {count} with {frames}",
            )

    def _entries(self) -> Iterator[_Entry]:
        names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
        for key in self.videos:
            names += [f"videos/{key}/{part}" for part in ("chunk_index", "file_index", "from_timestamp")]
        for path in self._tables():
            for batch in read_batches(path, names):
                with naming(path):
                    columns = [batch.column(at).to_pylist() for at in range(len(names))]
                for row in zip(*columns, strict=True):
                    yield self._entry(path, dict(zip(names, row, strict=True)))

    def _tables(self) -> list[Path]:
        """The files of the table of episodes, in their order."""
        root = self.folder.root
        found = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
        return [self.folder.path(path.relative_to(root).as_posix()) for path in found]

    def _entry(self, path: Path, row: Mapping[str, Any]) -> _Entry:
        def number(name: str) -> int:
            value = row[name]  # LeRobot's own tables have some as floats, after pandas has joined them
            if not isinstance(value, (int, float)) or not 0 <= value < 1 << 48 or value != int(value):
                raise CorruptBufferError(f"{path}: {name!r:.100}: expected a number from 0 on, got {value!r:.60}")
            return int(value)

        tasks = row["tasks"]
        if not isinstance(tasks, list) or not all(isinstance(each, str) for each in tasks):
            raise CorruptBufferError(f"{path}: 'tasks': expected texts, got {tasks!r:.60}")
        place = {f"{part}_index": number(f"data/{part}_index") for part in ("chunk", "file")}
        films = {}
        for key in self.videos:
            begin = row[f"videos/{key}/from_timestamp"]
            if not isinstance(begin, (int, float)) or not 0 <= begin < 1e12:
                raise CorruptBufferError(f"{path}: the video {key!r:.100} begins at {begin!r:.60}")
            where = {f"{part}_index": number(f"videos/{key}/{part}_index") for part in ("chunk", "file")}
            films[key] = filled(self.info.video_path or "", video_key=key, **where), float(begin)
        data = filled(self.info.data_path, **place)
        return _Entry(number("episode_index"), number("length"), tuple(tasks), data, films)

    def _old_entries(self) -> Iterator[_Entry]:
        for line in self.folder.lines(layout.OLD_EPISODES):
            index, length, tasks = (line.get(name) for name in ("episode_index", "length", "tasks"))
            if type(index) is not int or type(length) is not int or not 0 <= index < 1 << 48:
                raise self._fault(layout.OLD_EPISODES, f"expected an episode and its length, got {line!r:.80}")
            if not isinstance(tasks, list) or not all(isinstance(each, str) for each in tasks):
                raise self._fault(layout.OLD_EPISODES, f"expected the tasks of episode {index}, got {tasks!r:.60}")
            place = {"episode_chunk": index // self.info.chunk_size, "episode_index": index}
            films = {key: (filled(self.info.video_path or "", video_key=key, **place), 0.0) for key in self.videos}
            yield _Entry(index, length, tuple(tasks), filled(self.info.data_path, **place), films)


class _Reader:
    """Reads the values of episodes.

    Args:
        dataset: where they are.
        features: those that are read.
        fields: of the new buffer; images are encoded as their fields are.
    """

    def __init__(self, dataset: _Dataset, features: Sequence[Feature], fields: Mapping[str, Field]) -> None:
        self._dataset, self._features, self._fields = dataset, list(features), fields
        known = dataset.info.features
        self._flags = [key for key in (DONE, TRUNCATED) if key in known and known[key]["dtype"] == "bool"]
        columns = [each.key for each in features if each.dtype != "video"]
        extra = [name for name in ("timestamp", "task_index", *self._flags) if name in known and name not in columns]
        has_pictures = any(each.dtype == "image" for each in features)
        self._rows = RowReader([*columns, *extra], has_pictures=has_pictures)
        self._films = {each.key: VideoReader(each.info.shape, EXTRA) for each in features if each.dtype == "video"}

    def take(self, entry: _Entry) -> dict[str, Any]:
        """The values of an episode by feature, T rows each; images of fields with a codec are encoded.

        Raises:
            CorruptBufferError: the message names the episode.
        """
        path = self._dataset.folder.path(entry.data)
        films = {key: (self._dataset.folder.path(relative), begin) for key, (relative, begin) in entry.films.items()}
        pieces: dict[str, list[Any]] = {}
        with about(f"episode {entry.index}"):
            for piece in self._rows.take(path, entry.index, entry.length):
                for key, values in self._values(piece, films).items():
                    pieces.setdefault(key, []).append(values)
        return {key: _joined(values) for key, values in pieces.items()}

    def _values(self, piece: Mapping[str, Any], films: Mapping[str, tuple[Path, float]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, column in piece.items():
            if name in ("timestamp", "task_index", *self._flags):
                dtype = np.dtype(layout.BOOKKEEPING.get(name, "bool"))
                with about(f"feature {name!r:.100}"):
                    found[name] = from_arrow(column, dtype, ())
        for each in self._features:
            with about(f"feature {each.key!r:.100}"):
                if each.dtype == "video":
                    path, begin = films[each.key]
                    times = begin + found["timestamp"].astype(np.float64)
                    found[each.key] = self._stored(each, self._film(each, path, times))
                elif each.dtype == "image":
                    images = [from_bytes(content, each.info.shape) for content in _contents(piece[each.key])]
                    found[each.key] = self._stored(each, np.stack(images))
                else:
                    found[each.key] = from_arrow(piece[each.key], each.info.dtype, each.info.shape)
        return found

    def _film(self, feature: Feature, path: Path, times: Array) -> Array:
        return self._films[feature.key].take(path, times.tolist(), self._dataset.info.fps)

    def _stored(self, feature: Feature, rows: Array) -> Any:
        field = self._fields[feature.field]
        return rows if field.codec is None else Encoded(as_stored(field, rows), field)

    def doubtful(self) -> list[str]:
        """What the dataset says that is hardly meant so."""
        return [
            f"{key}: {film.num_late} frames are more than 0.1 ms from the time of their row; the nearest were taken"
            for key, film in self._films.items()
            if film.num_late
        ]

    def close(self) -> None:
        """Close all files."""
        self._rows.close()
        for film in self._films.values():
            film.close()


def _contents(column: Any) -> list[Any]:
    """What the rows of a column of images have as their bytes."""
    rows = column.to_pylist()
    if any(row is not None and not isinstance(row, dict) for row in rows):
        raise CorruptBufferError(f"expected images, got {column.type}")
    return [None if row is None else row.get("bytes") for row in rows]


def _joined(pieces: list[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    if isinstance(pieces[0], Encoded):
        return Encoded(Ragged.concatenate([each.stored for each in pieces]), pieces[0].field)
    return np.concatenate(pieces)


# --- what becomes of it ---


class _Exported:
    """Makes the buffer that was exported.

    Args:
        dataset: that is read.
        rest: what went along with it.

    Attributes:
        features: those that are read.
    """

    def __init__(self, dataset: _Dataset, rest: Rest) -> None:
        self._rest = rest
        self._along = set(rest.steps.metadata.fields)
        self.features = [each for each in rest.features if each.field not in self._along]

    def config(self, codecs: Codecs | None) -> dict[str, Any]:
        """The metadata of the new buffer."""
        metadata = self._rest.metadata
        self._fields = with_codecs(metadata.fields, codecs or {})
        return {
            "fields": self._fields,
            "meta_fields": metadata.meta_fields,
            "recorder_meta": metadata.recorder_meta,
            "environment": metadata.environment,
        }

    def store(self, new: NewBuffer, entry: _Entry, values: Mapping[str, Any]) -> None:
        """Store an episode."""
        episode, last = self._rest.episode(entry.index)
        found = {name: episode[name] for name in self._along}
        for each in self.features:
            rows = values[each.key]
            if each.info.state and last is not None:
                field = self._fields[each.field]
                row = np.asarray(last[each.field])
                rows = with_last_row(rows, row if field.codec is None else Encoded(as_stored(field, row), field))
            found[each.field] = rows
        new.put({**found, **episode.meta}, entry.length, complete=episode.complete)

    def not_known(self) -> list[str]:
        return []

    def left_out(self) -> list[str]:
        return (
            ["the tasks: they were given at the export, and are none of the buffer's"]
            if self._rest.tasks_are_given
            else []
        )


class _Foreign:
    """Makes a buffer of a dataset that was not exported from one.

    Args:
        dataset: that is read.

    Attributes:
        features: those that are read.
    """

    def __init__(self, dataset: _Dataset) -> None:
        self._dataset = dataset
        self._found: Found = found_features(dataset.info)
        self.features = self._found.features
        self._has_many_tasks = any(len(entry.tasks) > 1 for entry in dataset.entries())
        self._has_tasks = bool(dataset.tasks)

    def config(self, codecs: Codecs | None) -> dict[str, Any]:
        """The metadata of the new buffer."""
        fields = {each.field: each.info for each in self.features} | {name: Field("bool") for name in FLAGS}
        if self._has_many_tasks and "task_index" in self._dataset.info.features:
            fields["task_index"] = Field("int64")
        fields = stored_fields(fields, codecs)
        meta_fields = {TASK: Field("str")} if self._has_tasks else {}
        return {"fields": fields, "meta_fields": meta_fields, "environment": {IMPORTED: self._about()}}

    def _about(self) -> dict[str, Any]:
        info = self._dataset.info
        about: dict[str, Any] = {
            "codebase_version": info.version,
            "fps": int(info.fps) if float(info.fps).is_integer() else info.fps,
            "robot_type": info.robot_type,
            "features": {each.field: each.key for each in self.features},
            "names": {key: entry["names"] for key, entry in info.features.items() if entry.get("names") is not None},
        }
        if self._has_many_tasks:
            about["tasks"] = {str(number): text for number, text in self._dataset.tasks.items()}
        if self._dataset.subtasks:
            about["subtasks"] = {str(number): text for number, text in self._dataset.subtasks.items()}
        return about

    def store(self, new: NewBuffer, entry: _Entry, values: Mapping[str, Any]) -> None:
        """Store an episode."""
        found = {each.field: values[each.key] for each in self.features}
        flags: dict[str, Any] = dict.fromkeys(FLAGS)
        complete = False
        if self._found.flags:
            flags = {"terminated": values[DONE] & ~values[TRUNCATED], "truncated": values[TRUNCATED]}
            complete = bool(values[DONE][-1])
        if "task_index" in new.buffer.metadata.fields:
            found["task_index"] = values["task_index"]
        if self._has_tasks:
            found[TASK] = "\n".join(entry.tasks)
        new.store({**found, **episode_flags(flags, entry.length)}, entry.length, complete=complete)

    def not_known(self) -> list[str]:
        """What the dataset does not tell, beside last observations and how episodes ended."""
        known = self._dataset.info.features
        lines = [] if REWARD in known else ["rewards: there is no feature next.reward"]
        if not self._found.flags:
            lines.append("whether episodes terminated or were truncated: next.done and next.truncated would say it")
        return [*lines, "seeds, spaces, and the environment"]

    def left_out(self) -> list[str]:
        """What it has beside it."""
        return [*self._found.left_out, *self._dataset.unknown()]
