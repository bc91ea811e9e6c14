"""A Minari dataset read into a buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from tqdm import tqdm

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import (
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    GymReplayError,
)
from gym_replay.interop.minari import package
from gym_replay.interop.minari.arrivals import Arrival, check_length
from gym_replay.interop.minari.infos import arrow_episode
from gym_replay.interop.minari.limits import GROUP, Losses
from gym_replay.interop.minari.schemas import Schema, exported_schema, found_schema
from gym_replay.interop.target import check_new, new_buffer

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
    losses = Losses(on_unsupported)
    target = check_new(folder)
    source = package.open_dataset(dataset)
    schema = _schema_of(source, losses)
    numbers = source.episode_indices.tolist()
    with new_buffer(target, _config(schema.metadata)) as new:
        arrival = Arrival(new.buffer, schema, source, losses.refuse)
        for number in tqdm(iterable=numbers, desc="import", unit="episode", delay=1, disable=not progress):
            with losses.episode(number):
                arrival.store(*_read(source, number))
        if numbers and not len(new.buffer):
            raise EmptyBufferError("\n  ".join(["a buffer can hold none of the episodes:", *losses.lines()]))
    losses.warn(source.id)
    return ReplayBuffer.from_folder(target)


def _schema_of(source: Any, losses: Losses) -> Schema:
    exported = source.storage.metadata.get(GROUP)
    if exported is not None:
        return exported_schema(source, exported)
    numbers = source.episode_indices.tolist()
    if not numbers:
        raise FieldError("there is no episode in the dataset, which would tell the dtypes; nothing was imported")
    before = losses.empty_copy()  # which are met again, and told then, where the episodes are stored
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
        package.check_episode(storage, number)
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
