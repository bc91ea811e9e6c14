"""A Minari dataset read into a buffer."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.replay_buffer import ReplayBuffer, open_buffer
from gym_replay.errors import (
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    GymReplayError,
    NotABufferError,
    UnsupportedSpaceError,
)
from gym_replay.files.folders import folder_of
from gym_replay.interop.hidden_folder import HiddenFolder
from gym_replay.interop.minari import package
from gym_replay.interop.minari.arrivals import Arrival, check_length
from gym_replay.interop.minari.claims import check_episode
from gym_replay.interop.minari.infos import arrow_episode
from gym_replay.interop.minari.limits import GROUP, MODES
from gym_replay.interop.minari.schemas import Schema, exported_schema, found_schema

_SHOWN = 10
_AT_A_TIME = 100
_REMEDY = "; on_unsupported='drop' leaves it out"


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
        on_unsupported: what becomes of what a buffer cannot hold: ``"error"``, or ``"drop"`` to leave it out, with a
            warning that lists it: parts of spaces, infos, metadata, and episodes that are damaged, do not fit the
            others, or are more than one episode.
        progress: show a bar where it takes longer than a second.

    Returns:
        The buffer, open for appending.

    Raises:
        MissingExtraError: Minari is not installed.
        BufferNotFoundError: there is no such dataset on this machine.
        UnsupportedFormatError: the installed Minari does not read it.
        UnsupportedSpaceError, FieldError: a buffer cannot hold a part of it; the message names it.
        CorruptBufferError: the dataset is damaged; the message names the episode.
        EmptyBufferError: no episode is left.
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
    """What a buffer cannot hold of a dataset: an error, or collected for a warning.

    Attributes:
        drops: whether it is left out.
        found: how often each was.
    """

    def __init__(self, *, drops: bool) -> None:
        self.drops = drops
        self.found: dict[str, int] = {}

    def refuse(self, what: str, error: type[GymReplayError] = FieldError) -> None:
        """Leave it out, or raise an error that names it."""
        if not self.drops:
            raise error(what if what.endswith(_REMEDY) else what + _REMEDY)
        self.found[what] = self.found.get(what, 0) + 1

    @contextmanager
    def episode(self, number: int) -> Iterator[None]:
        """Leave out an episode that is damaged or does not fit, or name it in the error."""
        try:
            yield
        except (FieldError, CorruptBufferError, UnsupportedSpaceError) as error:
            self.refuse(f"episode {number}: {error}", type(error))

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
    numbers = source.episode_indices.tolist()
    with open_buffer(folder, config, overwrite=False) as buffer:
        arrival = Arrival(buffer, schema, source, losses.refuse)
        for number in tqdm(iterable=numbers, desc="import", unit="episode", delay=1, disable=not progress):
            with losses.episode(number):
                arrival.store(*_read(source, number))
        if numbers and not len(buffer):
            raise EmptyBufferError(
                "\n  ".join(["a buffer can hold none of the episodes:", *list(losses.found)[:_SHOWN]])
            )
        buffer.flush()


def _schema_of(source: Any, losses: Losses) -> Schema:
    exported = source.storage.metadata.get(GROUP)
    if exported is not None:
        return exported_schema(source, exported)
    numbers = source.episode_indices.tolist()
    if not numbers:
        raise FieldError("there is no episode in the dataset, which would tell the dtypes; nothing was imported")
    before = Losses(drops=losses.drops)  # which are met again, and told then, where the episodes are stored
    return found_schema(source, _first(source, numbers, before), _metadatas(source, numbers, before), losses.refuse)


def _first(source: Any, numbers: list[int], losses: Losses) -> dict[str, Any]:
    """The first episode; where episodes are left out, the first one that can be read."""
    for number in numbers:
        with losses.episode(number):
            values, _ = _read(source, number)
            return values
    raise EmptyBufferError("none of the episodes can be read")


def _metadatas(source: Any, numbers: list[int], losses: Losses) -> Iterator[Mapping[str, Any]]:
    for first in range(0, len(numbers), _AT_A_TIME):
        some = numbers[first : first + _AT_A_TIME]
        try:
            yield from list(source.storage.get_episode_metadata(some))
        except Exception:  # one of them is damaged
            for number in some:
                with losses.episode(number):
                    yield _metadata(source, number)


def _config(metadata: Metadata) -> dict[str, Any]:
    names = ("fields", "meta_fields", "recorder_meta", "environment")
    return {name: getattr(metadata, name) for name in names}


def _read(source: Any, number: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """An episode and its metadata.

    Minari is asked for one: of Arrow files it reads ahead through all that it is asked for, an open HDF5 file takes
    memory for each episode that was read from it, and where one is damaged those after it would not come.

    Raises:
        CorruptBufferError: it is damaged.
        FieldError: it has no steps.
    """
    metadata, storage = _metadata(source, number), source.storage
    try:
        check_episode(storage, number)
        if storage.FORMAT == "hdf5":
            (values,) = storage.get_episodes([number])
        else:
            values = arrow_episode(storage, number)
    except GymReplayError:
        raise
    except Exception as error:  # whatever Minari and the packages below it raise of a damaged dataset
        raise CorruptBufferError(f"Minari cannot read it: {type(error).__name__}: {error}") from error
    check_length(values, metadata)
    if not len(values["rewards"]):
        raise FieldError("an episode without steps")
    return values, metadata


def _metadata(source: Any, number: int) -> Mapping[str, Any]:
    try:
        (metadata,) = source.storage.get_episode_metadata([number])
    except Exception as error:  # as above
        raise CorruptBufferError(f"Minari cannot read its metadata: {type(error).__name__}: {error}") from error
    return dict(metadata)


def _free_folder(folder: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder where a buffer can be put.

    Raises:
        NotABufferError: there is something.
    """
    path = folder_of(folder)
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise NotABufferError(
            errno.EEXIST, "there is something already; choose another folder, or remove this one yourself", str(path)
        )
    return path
