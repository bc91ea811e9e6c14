"""A Minari dataset read into a buffer."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gym_replay.buffer.replay_buffer import ReplayBuffer, open_buffer
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.errors import CorruptBufferError, FieldError, NotABufferError
from gym_replay.interop.hidden_folder import HiddenFolder
from gym_replay.interop.minari import package
from gym_replay.interop.minari.arrivals import Arrival, check_length
from gym_replay.interop.minari.infos import arrow_infos
from gym_replay.interop.minari.limits import GROUP, MODES
from gym_replay.interop.minari.schemas import Schema, exported_schema, found_schema

_SHOWN = 10
_AT_A_TIME = 100


def import_minari(
    dataset: Any, folder: str | os.PathLike[str], *, on_unsupported: str = "error", progress: bool = True
) -> ReplayBuffer:
    """Read a Minari dataset into a new buffer, with all fields as if it had been recorded here.

    A dataset that :func:`export_minari` wrote gives the buffer that was exported, bit for bit. Of other datasets,
    docs/minari.md says what becomes what. The episodes are read one by one. The folder appears when the buffer is
    complete; until then it lies beside it in a hidden folder, which is removed where anything fails.

    Args:
        dataset: the id of a dataset on this machine (nothing is downloaded), or a ``minari.MinariDataset``, of which
            the episodes that it was filtered to are read.
        folder: the new buffer; nothing may be there, or an empty folder.
        on_unsupported: what becomes of infos and metadata that a buffer cannot hold, such as strings in infos:
            ``"error"``, or ``"drop"`` to leave them out, with a warning that lists them.
        progress: show a bar where it takes longer than a second.

    Returns:
        The buffer, open for appending.

    Raises:
        MissingExtraError: Minari is not installed.
        BufferNotFoundError: there is no such dataset on this machine.
        UnsupportedFormatError: the installed Minari does not read it.
        UnsupportedSpaceError, FieldError: a buffer cannot hold a part of it; the message names it.
        CorruptBufferError: the dataset is damaged; the message names the episode.
        NotABufferError: there is something in the folder.
        StorageError: the disk is full, or the operating system refused for another reason.

    Example:
        >>> buffer = import_minari("D4RL/door/human-v2", "data/door")  # doctest: +SKIP
        >>> buffer.episode(0)["observation"].shape  # (T+1, 39)  # doctest: +SKIP
    """
    if on_unsupported not in MODES:
        raise FieldError(f"on_unsupported={on_unsupported!r}: expected one of {MODES}")
    target = _free_folder(folder)
    source = package.open_dataset(dataset)
    losses = Losses(drops=on_unsupported == "drop")
    hidden = HiddenFolder(target)
    with hidden as aside:
        _fill(aside, source, losses, progress=progress)
        hidden.put_in_place()
    losses.warn(f"{source.id}: left out")
    return ReplayBuffer.from_folder(target)


class Losses:
    """What a buffer cannot hold of a dataset: an error, or collected for a warning."""

    def __init__(self, *, drops: bool) -> None:
        self._drops = drops
        self.found: dict[str, int] = {}

    def refuse(self, what: str) -> None:
        """Leave it out, or raise FieldError."""
        if not self._drops:
            raise FieldError(f"{what}; on_unsupported='drop' leaves it out")
        self.found[what] = self.found.get(what, 0) + 1

    def warn(self, head: str) -> None:
        """Say what was left out."""
        if self.found:
            lines = [f"{what} ({times} times)" if times > 1 else what for what, times in self.found.items()]
            more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
            warnings.warn("\n  ".join([f"{head}:", *lines[:_SHOWN], *more]), stacklevel=3)


def _fill(folder: Path, source: Any, losses: Losses, *, progress: bool) -> None:
    """Make a buffer of the dataset's episodes in an empty folder."""
    schema = _schema_of(source, losses)
    config = _config(schema.metadata)
    with open_buffer(folder, config, overwrite=False) as buffer:
        arrival = Arrival(buffer, schema, source, losses.refuse)
        numbers = source.episode_indices.tolist()
        with tqdm(total=len(numbers), desc="import", unit="episode", delay=1, disable=not progress) as bar:
            for number, (values, metadata) in zip(numbers, _episodes(source, numbers), strict=True):
                try:
                    arrival.store(values, metadata)
                except (FieldError, CorruptBufferError) as error:
                    raise type(error)(f"episode {number}: {error}") from error
                bar.update()
        buffer.flush()


def _schema_of(source: Any, losses: Losses) -> Schema:
    exported = source.storage.metadata.get(GROUP)
    if exported is not None:
        return exported_schema(source, exported)
    numbers = source.episode_indices.tolist()
    if not numbers:
        raise FieldError("there is no episode in the dataset, which would tell the dtypes; nothing was imported")
    first, _ = next(_episodes(source, numbers[:1]))
    metadatas = (
        metadata for asked in _some(numbers, _AT_A_TIME) for metadata in source.storage.get_episode_metadata(asked)
    )
    return found_schema(source, first, metadatas, losses.refuse)


def _config(metadata: Metadata) -> dict[str, Any]:
    names = ("fields", "meta_fields", "recorder_meta", "environment")
    return {name: getattr(metadata, name) for name in names}


def _episodes(source: Any, numbers: list[int]) -> Iterator[tuple[dict[str, Any], Mapping[str, Any]]]:
    """The episodes and their metadata, one in memory at a time.

    Minari is asked for few at once: of Arrow files it reads ahead through all that it is asked for, and an open HDF5
    file takes memory for each episode that was read from it.
    """
    storage = source.storage
    is_hdf5 = storage.FORMAT == "hdf5"
    for asked in _some(numbers, _AT_A_TIME if is_hdf5 else 1):
        metadatas = storage.get_episode_metadata(asked)
        for number, values, metadata in zip(asked, storage.get_episodes(asked), metadatas, strict=True):
            if not is_hdf5:
                values["infos"] = arrow_infos(storage, number)
            check_length(values, metadata)
            yield values, metadata


def _some(numbers: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def _free_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder where a buffer can be put.

    Raises:
        NotABufferError: there is something.
    """
    path = Path(os.path.abspath(folder))
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise NotABufferError(
            errno.EEXIST, "there is something already; choose another folder, or remove this one yourself", str(path)
        )
    return path
