"""A buffer written as a LeRobot dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.concat import opened
from gym_replay.buffer.door import Metadata
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import FieldError
from gym_replay.files.new_folder import new_folders
from gym_replay.interop.lerobot import layout
from gym_replay.interop.lerobot.features import (
    DONE,
    SUBTASK,
    TASK,
    TRUNCATED,
    Feature,
    imported_from,
    own_features,
)
from gym_replay.interop.lerobot.images import find_pillow, to_png
from gym_replay.interop.lerobot.report import ExportReport
from gym_replay.interop.lerobot.rest import RestWriter, rest_fields
from gym_replay.interop.lerobot.stats import Statistics
from gym_replay.interop.lerobot.tables import (
    arrow_type,
    find_pyarrow,
    picture_type,
    rolling_table,
    to_arrow,
    write_tasks,
)
from gym_replay.interop.lerobot.videos import FilmRoll, VideoOptions, checked_options
from gym_replay.interop.old_data import FLAGS, as_steps, check_new
from gym_replay.interop.transitions import ChosenEpisodes, check_flags
from gym_replay.notices import bar, names_nearest_keyword
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Array

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes

_BYTES_AT_ONCE = 1 << 25
_EPISODES_AT_ONCE = 100
_SAMPLED_FRAMES = 32
"""Frames of an episode that the statistics of its images are of."""


@names_nearest_keyword
def export_lerobot(
    buffer: str | os.PathLike[str] | Readable,
    folder: str | os.PathLike[str],
    *,
    fps: int | None = None,
    task: str | Sequence[str] | None = None,
    video: bool | VideoOptions = True,
    keys: Mapping[str, str | None] | None = None,
    element_names: Mapping[str, Sequence[str]] | None = None,
    robot_type: str | None = None,
    episodes: Episodes | None = None,
    progress: bool = True,
) -> ExportReport:
    """Write a buffer as a LeRobot dataset, which :func:`import_lerobot` makes the same buffer of again.

    The folder is laid out as LeRobot's codebase version v3.0 has it, so that ``LeRobotDataset(name, root=folder)``
    opens it. Observations, actions and rewards become features, each in its own dtype; a frame is the observation of a
    transition with what was done and got then. All else goes along in the folder ``gym_replay`` beside them, which
    LeRobot does not look at: the last observations, ``terminated`` and ``truncated`` apart, other fields, meta fields,
    spaces and the environment. There and back is the same buffer bit for bit, but for images in videos of a lossy
    encoder. docs/lerobot.md has the tables.

    Episodes are written one by one, long ones piece by piece. The folder appears when it is complete; until then it
    lies beside it in a hidden folder, which is removed where anything fails.

    Args:
        buffer: a folder, a ReplayBuffer or a ConcatReplayBuffer.
        folder: the new dataset; nothing may be there, or an empty folder.
        fps: frames a second, a whole number. May be left out where the buffer was imported from such a dataset.
        task: what is done, in words: one text for all episodes, or one for each. None for the meta field ``task``.
        video: whether images go to files of video; False keeps them in the tables, as PNG. Or a dict:
            ``codec`` (``"libx264"`` if not given), ``pix_fmt``, and any options of the encoder, such as
            ``{"codec": "libsvtav1", "crf": 30}``, or ``{"codec": "libx264rgb", "crf": 0}`` for videos without loss.
        keys: other keys of features by field, ``{"observation.agent_pos": "observation.state"}``; None instead of a key
            keeps a field from LeRobot, and a field that would be none becomes a feature under a key.
        element_names: what the numbers of a field are called, ``{"action": ["shoulder_pan.pos", "gripper.pos"]}``:
            LeRobot's replay sends each number to the motor of this name. Other fields of observations and actions that
            have one axis have the names of the dataset that was imported, or ``action_0``, ``action_1``, ...
        robot_type: a word for the robot.
        episodes: which ones to write, as in ``buffer.dataloader``; None for all.
        progress: show a bar where it takes longer than a second.

    Returns:
        What was written, which field is which feature, and what LeRobot does not see.

    Raises:
        MissingExtraError: pyarrow is not installed, or Pillow or PyAV, for images and videos.
        FieldError: ``fps`` or ``task`` is not known, a key is taken, names do not fit, or there is neither observation
            nor action.
        EmptyBufferError: there is no episode to write.
        NotABufferError: there is something at the target.
        StorageError: the disk is full, or the operating system refused for another reason.

    Example:
        >>> report = export_lerobot("data/pusht", "data/pusht-lerobot", fps=10, task="push the T")  # doctest: +SKIP
        >>> LeRobotDataset("me/pusht", root="data/pusht-lerobot")[0]["action"].shape  # doctest: +SKIP
        torch.Size([2])
    """
    find_pyarrow()
    target = check_new(folder)
    with opened(buffer) as source:
        chosen = ChosenEpisodes(source, episodes)
        plan = _Plan(source.metadata, chosen, fps, task, video, keys, element_names, robot_type)
        with new_folders(target) as (new,):
            writer = _Writer(new.folder, plan)
            try:
                with bar(len(chosen), "export", "episode", progress=progress) as shown:
                    for episode, words in zip(chosen, plan.tasks, strict=True):
                        writer.add(episode, words)
                        shown.update()
                writer.finish()
            finally:
                writer.close()
            new.publish()
        return ExportReport(
            target,
            writer.num_episodes,
            writer.num_frames,
            {each.field: each.key for each in plan.features},
            plan.unseen(),
            plan.changed(),
        )


class _Plan:
    """What of a buffer becomes what of a dataset.

    Attributes:
        features: which field is which feature.
        flags: the fields of ``terminated`` and ``truncated``, where both are there.
        tasks: the task of each episode.
        tasks_of_steps: the tasks by the numbers of the field ``task_index``; none where an episode has one for all.
        subtasks: by number; none where no feature has the numbers.
        fps: frames a second.
        options: of the encoder of videos; None where there are none.

    Raises:
        FieldError, MissingExtraError: as :func:`export_lerobot`.
    """

    def __init__(
        self,
        metadata: Metadata,
        chosen: ChosenEpisodes,
        fps: int | None,
        task: str | Sequence[str] | None,
        video: bool | VideoOptions,
        keys: Mapping[str, str | None] | None,
        element_names: Mapping[str, Sequence[str]] | None,
        robot_type: str | None,
    ) -> None:
        if not isinstance(video, (bool, Mapping)):
            raise FieldError(f"video={video!r:.60}: expected True, False, or a dict such as {{'codec': 'libsvtav1'}}")
        self.metadata = metadata
        self._imported = imported_from(metadata) or {}
        self.fps = self._checked_fps(fps)
        self.robot_type = self._imported.get("robot_type") if robot_type is None else robot_type
        self.features = own_features(metadata, keys, element_names, as_video=video is not False)
        if not any(each.field.partition(".")[0] in ("observation", "action") for each in self.features):
            raise FieldError(
                "there is no observation or action that LeRobot could hold; keys={'field': 'observation.state'} names "
                f"others. There are {list(metadata.fields)}"
            )
        self.flags = self._find_flags()
        self.tasks_are_given = task is not None
        self.tasks = self._checked_tasks(task, chosen)
        has_steps = not self.tasks_are_given and f"{TASK}_index" in metadata.fields
        self.tasks_of_steps = self._imported_texts("tasks") if has_steps else {}
        has_subtasks = any(each.key == f"{SUBTASK}_index" for each in self.features)
        self.subtasks = self._imported_texts("subtasks") if has_subtasks else {}
        self.options = checked_options(video) if any(each.dtype == "video" for each in self.features) else None
        if any(each.dtype == "image" for each in self.features):
            find_pillow()

    def _imported_texts(self, name: str) -> dict[int, str]:
        """Texts by number, as an import has noted them."""
        found = self._imported.get(name)
        known = found.items() if isinstance(found, dict) else ()
        return {int(number): str(text) for number, text in known if number.isdecimal() and len(number) < 19}

    def _checked_fps(self, fps: int | None) -> int:
        fps = self._imported.get("fps") if fps is None else fps
        if fps is None:
            raise FieldError("fps: LeRobot has a time for each frame, and none was recorded; pass fps=..., such as 30")
        return checked_integer("fps", fps, 1, 100_000)

    def _find_flags(self) -> bool:
        if not all(name in self.metadata.fields for name in FLAGS):
            return False
        check_flags(self.metadata.fields, *FLAGS)
        return not any(each.key in (DONE, TRUNCATED) for each in self.features)

    def _checked_tasks(self, task: str | Sequence[str] | None, chosen: ChosenEpisodes) -> Iterable[str]:
        if isinstance(task, str):
            return [task] * len(chosen)
        if task is not None:
            tasks = list(task)
            if len(tasks) != len(chosen) or not all(isinstance(each, str) for each in tasks):
                raise FieldError(f"task: expected a text, or one for each of {len(chosen)} episodes, got {task!r:.80}")
            return tasks
        field = self.metadata.meta_fields.get(TASK)
        if field is None or not field.is_text:
            raise FieldError(
                "task: LeRobot has a text for each frame that says what is done, and there is no meta field 'task' of "
                "strings; pass task='...'"
            )
        return (episode.meta[TASK] for episode in chosen)

    def entries(self) -> dict[str, dict[str, Any]]:
        """What ``meta/info.json`` says of all features, but for what is known of videos only when they are there."""
        entries = {each.key: each.to_json(self.fps) for each in self.features}
        single = {"shape": [1], "names": None, "fps": self.fps}
        if self.flags:
            entries |= {key: {"dtype": "bool", **single} for key in (DONE, TRUNCATED)}
        return entries | {key: {"dtype": dtype, **single} for key, dtype in layout.BOOKKEEPING.items()}

    def unseen(self) -> tuple[str, ...]:
        """What LeRobot has no place for."""
        lines = []
        if any(info.state for info in self.metadata.fields.values()):
            lines.append("the last observations: a dataset has T frames of T transitions")
        if self.flags:
            lines.append("terminated: next.done is True where an episode terminated or was truncated")
        own = {each.field for each in self.features}
        others = [name for name in rest_fields(self.metadata.fields, self.features) if name not in (*own, *FLAGS)]
        if others:
            lines.append(f"the fields {', '.join(others)}")
        if meta := [name for name in self.metadata.meta_fields if name != TASK]:
            lines.append(f"the meta fields {', '.join(meta)}")
        if self.metadata.environment:
            lines.append("spaces and the environment's spec")
        return tuple(lines)

    def changed(self) -> tuple[str, ...]:
        """What comes back other than it was."""
        return tuple(
            f"{each.field}: as frames of a video, which are not what was encoded unless the encoder is lossless"
            for each in self.features
            if each.dtype == "video"
        )


class _Writer:
    """Writes the files of a dataset, episode by episode.

    Args:
        root: an empty folder.
        plan: what goes where.

    Attributes:
        num_episodes, num_frames: what is written.
    """

    def __init__(self, root: Path, plan: _Plan) -> None:
        self._root, self._plan = root, plan
        self.num_episodes = self.num_frames = 0
        self._tasks: dict[str, int] = {}
        self._entries = plan.entries()
        self._rest = RestWriter(root, plan.metadata, plan.features, tasks_are_given=plan.tasks_are_given)
        self._data = rolling_table(root, layout.DATA, self._schema())
        self._films = {
            each.field: FilmRoll(root, each.key, plan.fps, plan.options)
            for each in plan.features
            if each.dtype == "video" and plan.options is not None
        }
        pictures = {each.key: each.shape[2] for each in plan.features if each.is_picture}
        shapes = {key: tuple(entry["shape"]) for key, entry in self._entries.items()}
        self._statistics = Statistics(
            {key: (pictures[key],) if key in pictures else shape for key, shape in shapes.items()}, set(pictures)
        )
        self._table: layout.RollingFiles[Any] | None = None
        self._rows: list[dict[str, Any]] = []
        widest = sum(each.info.nbytes for each in plan.features)
        self._at_once = max(1, _BYTES_AT_ONCE // max(1, widest))

    def _schema(self) -> Any:
        pa = find_pyarrow()
        features = {each.key: each for each in self._plan.features}
        columns = []
        for key, entry in self._entries.items():
            if entry["dtype"] == "image":
                columns.append((key, picture_type()))
            elif entry["dtype"] != "video":
                info = features[key].info if key in features else None
                dtype = np.dtype(entry["dtype"]) if info is None else info.dtype
                columns.append((key, arrow_type(dtype, tuple(entry["shape"]))))
        return pa.schema(columns)

    def add(self, episode: Episode, task: str) -> None:
        """Write an episode."""
        length = len(episode)
        self._rows_file = self._data.begin()
        for film in self._films.values():
            film.begin()
        self._statistics.begin()
        tasks, numbers = self._tasks_of(episode, task)
        for low in range(0, length, self._at_once):
            self._add_rows(episode, slice(low, min(low + self._at_once, length)), numbers)
        self._rest.add(episode)
        row: dict[str, Any] = {"episode_index": self.num_episodes, "tasks": tasks, "length": length}
        row |= {f"data/{name}": number for name, number in self._data.place.items()}
        row |= {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + length}
        for film in self._films.values():
            row |= film.end()
        for key, values in self._statistics.of_episode().items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        self._rows.append(row)
        self.num_episodes += 1
        self.num_frames += length
        if len(self._rows) >= _EPISODES_AT_ONCE:
            self._flush()

    def _tasks_of(self, episode: Episode, task: str) -> tuple[list[str], Array]:
        """The tasks of an episode, and of each step the number of its task."""
        known = self._plan.tasks_of_steps
        given = np.asarray(episode[f"{TASK}_index"])[: len(episode)] if known else np.zeros(len(episode), np.int64)
        distinct, first, which = np.unique(given, return_index=True, return_inverse=True)
        texts = [known.get(number, task) for number in distinct.tolist()]
        tasks = [texts[at] for at in np.argsort(first).tolist()]
        numbers = {text: self._tasks.setdefault(text, len(self._tasks)) for text in tasks}
        return list(numbers), np.array([numbers[text] for text in texts])[which]

    def _add_rows(self, episode: Episode, rows: slice, tasks: Array) -> None:
        pa = find_pyarrow()
        frames = np.arange(rows.start, rows.stop)
        columns: dict[str, Any] = {}
        thin = max(1, len(episode) // _SAMPLED_FRAMES)
        for each in self._plan.features:
            values = np.asarray(episode[each.field][rows])
            if each.is_picture:
                sampled = values[-rows.start % thin :: thin]
                if len(sampled):
                    self._statistics.add(each.key, np.broadcast_to(sampled, (*sampled.shape[:3], each.shape[2])))
                if each.field in self._films:
                    self._films[each.field].add(values)
                else:
                    images = [{"bytes": to_png(value), "path": None} for value in values]
                    columns[each.key] = pa.array(images, picture_type())
            else:
                columns[each.key] = self._numbers(each, values)
        for key, column in self._bookkeeping(episode, rows, frames, tasks).items():
            self._statistics.add(key, column[:, None])
            columns[key] = pa.array(column)
        self._rows_file.write_table(pa.table([columns[name] for name in self._schema_names], names=self._schema_names))

    @property
    def _schema_names(self) -> list[str]:
        return [key for key, entry in self._entries.items() if entry["dtype"] != "video"]

    def _numbers(self, feature: Feature, values: Array) -> Any:
        values = values.reshape(len(values), *feature.shape)
        self._statistics.add(feature.key, values)
        return to_arrow(values, feature.shape)

    def _bookkeeping(self, episode: Episode, rows: slice, frames: Array, tasks: Array) -> dict[str, Array]:
        found: dict[str, Array] = {}
        if self._plan.flags:
            terminated, truncated = (as_steps(name, np.asarray(episode[name][rows])) != 0 for name in FLAGS)
            found |= {DONE: terminated | truncated, TRUNCATED: truncated}
        numbers = {
            "timestamp": frames / self._plan.fps,
            "frame_index": frames,
            "episode_index": np.full(len(frames), self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": tasks[rows],
        }
        return {**found, **{key: numbers[key].astype(dtype) for key, dtype in layout.BOOKKEEPING.items()}}

    def _flush(self) -> None:
        """Write rows of the table of episodes."""
        pa = find_pyarrow()
        if not self._rows:
            return
        if self._table is None:
            # Of the first rows, each column tells its type: numbers are never missing, and no list is empty.
            fields = list(pa.Table.from_pylist(self._rows[:1]).schema)
            own = [pa.field(f"meta/episodes/{name}_index", pa.int64()) for name in ("chunk", "file")]
            self._table = rolling_table(self._root, layout.EPISODES, pa.schema([*fields, *own]))
        file = self._table.begin()
        own_place = {f"meta/episodes/{name}": number for name, number in self._table.place.items()}
        rows = [{**row, **own_place} for row in self._rows]
        file.write_table(pa.Table.from_pylist(rows, pa.Table.from_pylist(rows[:1]).schema))
        self._rows.clear()

    def finish(self) -> None:
        """Write what is said of the whole."""
        self._flush()
        for feature in self._plan.features:
            if feature.field in self._films:
                film = self._films[feature.field]
                film.close()
                self._entries[feature.key]["info"] = film.about()
        write_tasks(self._root / layout.TASKS, {number: task for task, number in self._tasks.items()})
        if self._plan.subtasks:
            write_tasks(self._root / layout.SUBTASKS, self._plan.subtasks, SUBTASK)
        self._rest.close(self._entries)
        self._write_json(layout.STATS, self._statistics.of_all())
        self._write_json(layout.INFO, self._info())

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": layout.VERSION,
            "robot_type": self._plan.robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.FILES_IN_CHUNK,
            "data_files_size_in_mb": layout.DATA_MB,
            "video_files_size_in_mb": layout.VIDEO_MB,
            "fps": self._plan.fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": layout.DATA,
            "video_path": layout.VIDEOS if self._films else None,
            "features": self._entries,
        }

    def _write_json(self, relative: str, value: Any) -> None:
        (self._root / relative).write_text(json.dumps(value, indent=4, allow_nan=False))

    def close(self) -> None:
        """Close all files."""
        self._data.close()
        if self._table is not None:
            self._table.close()
        for film in self._films.values():
            with suppress(Exception):  # it is closed already, unless something else has failed
                film.close()
