"""From a data set that TensorFlow Datasets prepared to a new buffer."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gym_replay.errors import BufferNotFoundError, CorruptBufferError, FieldError, UnsupportedFormatError
from gym_replay.files.documents import object_of_file
from gym_replay.files.folders import local_path
from gym_replay.interop.old_data import (
    ImportReport,
    check_new,
    field_name,
    is_observation,
    new_buffer,
    step_field,
    stored_fields,
)
from gym_replay.interop.rlds.features import Feature, Features, decoded
from gym_replay.interop.rlds.records import examples
from gym_replay.notices import bar
from gym_replay.schema.codec_choice import Codecs
from gym_replay.schema.fields import LARGEST_TEXT, Field, require_codecs
from gym_replay.schema.names import check_distinct

IMPORTED = "rlds"
"""The member of a buffer's environment that holds what the data set says of itself."""

_INFO, _FEATURES = "dataset_info.json", "features.json"
_OBSERVATION, _FIRST, _LAST, _TERMINAL = "observation", "is_first", "is_last", "is_terminal"
_FLAGS = {"terminated": Field("bool"), "truncated": Field("bool")}


def from_rlds(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    split: str | None = None,
    codecs: Codecs | None = None,
    progress: bool = True,
) -> ImportReport:
    """Copy an RLDS data set, as TensorFlow Datasets keeps it, into a new buffer, episode by episode.

    It is read without TensorFlow. ``steps/observation`` becomes the state fields ``observation`` or
    ``observation.<name>``, ``steps/action`` and ``steps/reward`` the fields of these names, and all else of a step that
    is a number or an array a field of its name. Strings become meta fields, of which one of an episode is kept, and so
    do the numbers and strings of the episode itself, such as ``episode_metadata.file_path``.

    By RLDS's definition a step has the observation, the action taken in it and the reward for that action, and where
    ``is_last`` is set the observation alone means something. So an episode of N steps has N - 1 transitions, and its
    last observation; ``is_terminal`` of the last step says whether it terminated, and otherwise it was truncated. An
    episode that does not end in ``is_last`` was cut: all of its steps are transitions, and its last observation is
    not known. (S. Ramos et al., "RLDS: an Ecosystem to Generate, Share and Use Datasets in Reinforcement Learning",
    2021, and its documentation.)

    Args:
        source: the folder of one version, with ``dataset_info.json``, ``features.json`` and files of TFRecord.
        target: a folder that does not exist yet. It appears when all is in it.
        split: take only this one, such as ``"train"``. None for all, whose names are in the meta field ``split``.
        codecs: what images are stored with, as :class:`RecordToBuffer` takes it: ``{"images": "png"}``, or
            ``{"observation.image": "raw"}``. ``"zstd"`` where that does not say it.
        progress: show a bar where it takes longer than a second.

    Returns:
        What was made, and what the data set does not tell.

    Raises:
        MissingExtraError: protobuf or google-crc32c is not installed, or Pillow or numcodecs for images.
        BufferNotFoundError: there is no data set, or none with its features.
        UnsupportedFormatError: its files are not of TFRecord.
        CorruptBufferError: a file is damaged, cut off or missing, or an episode is not what the features say.
        FieldError: it is of no steps, or of none with observations and actions; there is no such split; or a codec
            does not go with a field.
        EmptyBufferError: there is no transition.
        NotABufferError: there is something at the target.
        StorageError: the operating system refused.

    Example:
        >>> report = from_rlds("tensorflow_datasets/bridge/1.0.0", "data/bridge", split="train")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    path = check_new(target)
    dataset = _Dataset(Path(local_path(source)), split)
    config = dataset.config(codecs)
    require_codecs(config["fields"])
    with new_buffer(path, config) as new:
        with bar(dataset.count, "import", "episode", progress=progress) as shown:
            for episode in dataset.episodes():
                values, length, complete = dataset.values(episode)
                if length:
                    new.store(values, length, complete=complete)
                shown.update()
        return new.report(dataset.not_known(), dataset.left_out(), dataset.doubtful())


class _Found(NamedTuple):
    """An episode as it is in a file.

    Attributes:
        lists: by name what it has.
        where: file and record, for messages.
        split: its split.
    """

    lists: Mapping[str, Any]
    where: str
    split: str


class _Dataset:
    """A data set of TensorFlow Datasets.

    Args:
        folder: of it.
        split: the only one that counts; None for all.

    Attributes:
        count: how many episodes it says that it has.
    """

    def __init__(self, folder: Path, split: str | None) -> None:
        self._folder = folder
        for name in (_INFO, _FEATURES):
            if not (folder / name).is_file():
                raise BufferNotFoundError(
                    2,
                    f"no data set of TensorFlow Datasets here: there is no {name}; give the folder of one version, "
                    "such as bridge/1.0.0",
                    str(folder),
                )
        self._info = object_of_file(folder / _INFO)
        self._features = Features(object_of_file(folder / _FEATURES))
        kind = self._info.get("fileFormat", "tfrecord")
        if kind != "tfrecord":
            raise UnsupportedFormatError(
                f"{folder}: expected files of the format tfrecord, got {kind!r}; prepare the data set with file_format="
                "'tfrecord'"
            )
        sizes = {each["name"]: [int(n) for n in each.get("shardLengths", ())] for each in self._info.get("splits", [])}
        if split is not None and split not in sizes:
            raise FieldError(f"split={split!r}: the data set has {sorted(sizes) or 'none'}")
        self._sizes = sizes if split is None else {split: sizes[split]}
        self.count = sum(map(sum, self._sizes.values()))
        self._alone = 0
        self._varied: Counter[str] = Counter()
        self._named: dict[str, Feature] = {}

    # --- the files ---

    def episodes(self) -> Iterator[_Found]:
        """All episodes, split by split and file by file.

        Raises:
            CorruptBufferError: a file is missing, or has another number of episodes than the data set says.
        """
        for split, lengths in self._sizes.items():
            files = self._files(split)
            if len(files) != len(lengths):
                raise CorruptBufferError(
                    f"{self._folder}: expected {len(lengths)} files of the split {split!r}, got {len(files)}"
                )
            for path, length in zip(files, lengths, strict=True):
                number = -1
                for number, lists in enumerate(examples(path)):
                    yield _Found(lists, f"{path}: episode {number}", split)
                if number + 1 != length:
                    raise CorruptBufferError(f"{path}: expected {length} episodes, got {number + 1}")

    def _files(self, split: str) -> list[Path]:
        pattern = re.compile(rf".*-{re.escape(split)}\.tfrecord-(\d+)-of-(\d+)")
        found = [path for path in self._folder.iterdir() if pattern.fullmatch(path.name)]
        if links := [path for path in found if path.is_symlink() and not path.resolve().is_file()]:
            raise CorruptBufferError(f"{links[0]}: this file of the data set is missing")
        return sorted(found)

    # --- the new buffer ---

    def config(self, codecs: Codecs | None) -> dict[str, Any]:
        """The metadata of the new buffer.

        Raises:
            FieldError: there are no observations or no actions, or a codec does not go with a field.
        """
        fields: dict[str, Field] = {}
        meta: dict[str, Field] = {"split": Field("str")}
        for path, feature in self._features.of_steps.items():
            if path in (_FIRST, _LAST, _TERMINAL):
                continue
            name = _name(path)
            self._named[name] = feature
            if feature.kind == "text":
                meta[name] = Field("str")
                continue
            shape = self._shape(feature)
            fields[name] = step_field(name, feature.dtype, shape, state=is_observation(name))
        fields = dict(sorted(fields.items(), key=lambda item: not is_observation(item[0])))
        for wanted in (_OBSERVATION, "action"):
            if not any(name.split(".")[0] == wanted for name in fields):
                raise FieldError(f"the data set has no {wanted} that can be read; it has {[*self._features.of_steps]}")
        for path, feature in self._features.of_episodes.items():
            if feature.kind == "image":
                self._features.left_out.append(f"{path}: an image of an episode is not read")
                continue
            name = _name(path)
            self._named[name] = feature
            text = feature.kind == "text"
            meta[name] = Field("str") if text else Field(feature.dtype, feature.shape or ())
        check_distinct([*fields, *_FLAGS, *meta])
        about = {name: self._info[name] for name in ("name", "version", "description") if name in self._info}
        return {
            "fields": stored_fields({**fields, **_FLAGS}, codecs),
            "meta_fields": meta,
            "environment": {IMPORTED: about},
        }

    def _shape(self, feature: Feature) -> tuple[int, ...]:
        """The shape of one value; where only the values say it, that of the first one."""
        if feature.shape is not None:
            return feature.shape
        for episode in self.episodes():
            if values := episode.lists.get(f"steps/{feature.path}"):
                return decoded(values[0], f"{episode.where}: {feature.path!r}", None).shape
        raise FieldError(f"{feature.path!r}: there is no image to tell how large they are")

    def values(self, episode: _Found) -> tuple[dict[str, Any], int, bool]:
        """The values of an episode, how many transitions it has, and whether it is known how it ended.

        Raises:
            CorruptBufferError: it is not what the features say.
        """
        lists, where = episode.lists, episode.where
        count = self._number_of_steps(lists, where)
        is_last = self._flags(_LAST, lists, count, where)
        if is_last[:-1].any():
            raise CorruptBufferError(f"{where}: is_last is set before the last step")
        complete = bool(is_last[-1:].any())
        length = count - complete
        self._alone += length == 0
        found: dict[str, Any] = {"split": episode.split}
        for name, feature in self._named.items():
            if feature is self._features.of_steps.get(feature.path):
                rows = feature.rows(lists.get(f"steps/{feature.path}", []), count, where)
                if feature.kind == "text":
                    self._varied[name] += len(set(rows)) > 1
                    found[name] = self._text(name, rows[0] if rows else "", where)
                else:
                    found[name] = rows if is_observation(name) else rows[:length]
            else:
                (value,) = feature.rows(lists.get(feature.path, []), 1, where)
                found[name] = self._text(name, value, where) if feature.kind == "text" else value
        found["terminated"], found["truncated"] = np.zeros((2, length), np.bool_)
        is_terminal = bool(self._flags(_TERMINAL, lists, count, where)[-1:].any())
        found["terminated" if is_terminal else "truncated"][-1:] = True
        return found, length, complete

    def _number_of_steps(self, lists: Mapping[str, Any], where: str) -> int:
        # Of one number a step first: there is nothing to divide by.
        for feature in sorted(self._features.of_steps.values(), key=lambda feature: feature.shape != ()):
            if (values := lists.get(f"steps/{feature.path}")) is not None:
                size = 1 if isinstance(values, list) else int(np.prod(feature.shape or (), dtype=np.int64))
                if size:
                    return len(values) // size
        raise CorruptBufferError(f"{where}: it has no steps")

    def _flags(self, name: str, lists: Mapping[str, Any], count: int, where: str) -> Any:
        feature = self._features.of_steps.get(name)
        if feature is None:
            return np.zeros(count, np.bool_)
        return feature.rows(lists.get(f"steps/{name}", []), count, where).reshape(count).astype(np.bool_)

    def _text(self, name: str, text: str, where: str) -> str:
        if len(text.encode()) > LARGEST_TEXT:
            raise FieldError(f"{where}: {name!r} is longer than {LARGEST_TEXT} bytes")
        return text

    # --- the report ---

    def not_known(self) -> list[str]:
        """What the data set does not tell, beside last observations."""
        names = {name.split(".")[0] for name in self._named}
        lines = {
            "rewards: there are none": "reward" not in names,
            "where episodes end: there is no is_last": _LAST not in self._features.of_steps,
            "whether episodes terminated: there is no is_terminal": _TERMINAL not in self._features.of_steps,
        }
        return [line for line, is_so in lines.items() if is_so]

    def left_out(self) -> list[str]:
        """What else the data set has."""
        alone = [f"{self._alone} episodes of one step, which are no transition"] if self._alone else []
        return [*self._features.left_out, *alone]

    def doubtful(self) -> list[str]:
        """What was kept in part."""
        return [
            f"{name}: it changes within {count} episodes, of which the first one is kept"
            for name, count in self._varied.items()
            if count
        ]


def _name(path: str) -> str:
    """The field of a feature of a step or an episode."""
    name = field_name(path)
    return f"{IMPORTED}.{name}" if name.split(".")[0] in _FLAGS else name
