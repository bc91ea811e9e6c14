"""The package minari: found at first use, what is relied on of it, and datasets of its older versions.

Every use of it goes through its public storage interface, ``MinariStorage``: ``new``, ``read``, ``update_episodes``,
``get_episodes`` and the metadata. What that interface gives back wrongly or not at all is said in
:mod:`gym_replay.interop.minari.limits`. What a dataset says of its sizes is checked before Minari allocates anything.

A dataset of Minari 0.4 is one HDF5 file, whose attributes are what later versions have in ``metadata.json``. Minari 0.5
gives up on it ("No data found"), but lays out the episodes in the same way, so its own reader reads them.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import (
    BufferNotFoundError,
    CorruptBufferError,
    FieldError,
    GymReplayError,
    MissingExtraError,
    UnsupportedFormatError,
)
from gym_replay.extras import require
from gym_replay.interop.hdf5 import check_claim, data_sets
from gym_replay.interop.minari.limits import LONGEST_ARROW

FORMATS = ("hdf5", "arrow", "parquet")
"""Minari's storage formats."""

_OLDEST = (0, 5, 4)
"""The first version that keeps images as they are where it is asked to."""

_RAW_IMAGES = ("0.5.0", "0.5.1", "0.5.2")

_FILE = "main_data.hdf5"

_PACKAGE_OF = {"hdf5": "h5py", "arrow": "pyarrow", "parquet": "pyarrow"}


def find_minari(data_format: str | None = None) -> Any:
    """The module ``minari``, with what it needs for a storage format.

    Raises:
        MissingExtraError: it, or what it needs, is not installed.
        FieldError: there is no such format.
    """
    if data_format is not None and data_format not in FORMATS:
        raise FieldError(f"data_format={data_format!r}: expected one of {FORMATS}")
    for needed in ("PIL", *([] if data_format is None else [_PACKAGE_OF[data_format]])):
        require(needed, "minari", "reading and writing Minari datasets")
    minari = require("minari", "minari", "reading and writing Minari datasets")
    version = tuple(int(part) for part in minari.__version__.split(".")[:3] if part.isdigit())
    if version < _OLDEST:
        raise MissingExtraError(
            f"Minari {minari.__version__} encodes images as JPEG, whether asked to or not; "
            "pip install --upgrade 'gym-replay[minari]'"
        )
    return minari


def storage_class() -> Any:
    """Minari's ``MinariStorage``."""
    return import_module("minari.dataset.minari_storage").MinariStorage


def check_id(dataset_id: str) -> str | None:
    """The namespace in a dataset's id, or None.

    Raises:
        FieldError: it is no id.
    """
    parse = import_module("minari.dataset.minari_dataset").parse_dataset_id
    try:
        namespace: str | None = parse(dataset_id)[0]
    except (ValueError, TypeError):  # a TypeError where the version is missing
        raise FieldError(
            f"dataset id {dataset_id!r}: expected NAME-vVERSION or NAMESPACE/NAME-vVERSION, such as "
            "'cartpole/random-v0', made of letters, digits, - and _; a namespace has at least two characters"
        ) from None
    return namespace


def path_of(dataset_id: str) -> Path:
    """Where Minari has, or would have, the dataset: below ``MINARI_DATASETS_PATH``."""
    path = import_module("minari.storage.datasets_root_dir").get_dataset_path(dataset_id)
    return Path(os.path.abspath(path))


def open_dataset(dataset: Any) -> Any:
    """The ``MinariDataset`` of an id; a dataset itself is passed through.

    Nothing is downloaded.

    Raises:
        BufferNotFoundError: there is no such dataset on this machine.
        UnsupportedFormatError: the installed Minari does not read it.
    """
    minari = find_minari()
    if not isinstance(dataset, str):
        if not isinstance(dataset, minari.MinariDataset):
            raise FieldError(f"expected a dataset's id or a MinariDataset, got {type(dataset).__name__}")
        return _with_images_as_stored(minari, dataset)
    check_id(dataset)
    path = path_of(dataset)
    data = path / "data"
    if not data.is_dir():
        raise BufferNotFoundError(
            errno.ENOENT,
            f"no Minari dataset {dataset!r} here; minari.download_dataset({dataset!r}) fetches one, and "
            "MINARI_DATASETS_PATH says where they are",
            str(path),
        )
    try:
        if _is_old(data):
            find_minari("hdf5")
            metadata = _old_metadata(data)
        else:
            metadata = storage_class().read_raw_metadata(data)
            find_minari(metadata.get("data_format"))
        _check_metadata(data, metadata)
        if _is_old(data):
            return _open_old(dataset, data, metadata)
        return _with_images_as_stored(minari, minari.load_dataset(dataset))
    except GymReplayError:
        raise
    except Exception as error:  # of another version of Minari, or of spaces that the installed Gymnasium refuses
        raise UnsupportedFormatError(
            f"Minari {minari.__version__} cannot open {dataset!r}: {type(error).__name__}: {error}"
        ) from error


def _with_images_as_stored(minari: Any, dataset: Any) -> Any:
    """A ``MinariDataset`` that reads images as they are stored.

    Versions 0.5.0 to 0.5.2 store them as they are, 0.5.3 as JPEG, and neither notes it; 0.5.4 takes both as JPEG.
    """
    metadata, storage = dataset.storage.metadata, dataset.storage
    if "jpeg_encoding" in metadata or metadata.get("minari_version") not in _RAW_IMAGES:
        return dataset
    spaces = storage.observation_space, storage.action_space
    raw = type(storage)(storage.data_path, *spaces, jpeg_encoding=False)
    return minari.MinariDataset(raw, episode_indices=dataset.episode_indices)


@contextmanager
def written_once(storage: Any) -> Iterator[None]:
    """Have a storage rewrite the dataset's own metadata once, at the end.

    Minari does it after each episode of an Arrow dataset, with the size of all files added up anew.
    """
    collected: dict[str, Any] = {}
    storage.get_size, storage.update_metadata = (lambda: 0.0), collected.update
    try:
        yield
    finally:
        del storage.get_size, storage.update_metadata
    storage.update_metadata({**collected, "dataset_size": storage.get_size()})


def _check_metadata(data_path: Path, metadata: Any) -> None:
    """Raise CorruptBufferError where there are not as many episodes, or bounds of a space, as the metadata say."""
    if not isinstance(metadata, dict):
        raise CorruptBufferError(f"{data_path}: the metadata are no object")
    count = metadata.get("total_episodes")
    if (data_path / _FILE).exists():
        with import_module("h5py").File(data_path / _FILE, "r") as file:
            found = len(file)
    else:
        found = sum(entry.is_dir() for entry in os.scandir(data_path))
    if type(count) is not int or not 0 <= count <= found:
        raise CorruptBufferError(f"{data_path}: total_episodes is {count!r:.60}, and there are {found}")
    for kind in ("observation", "action"):
        if isinstance(text := metadata.get(f"{kind}_space"), str):
            _check_space(f"{data_path}: {kind}_space", json.loads(text))


def _check_space(name: str, space: Any) -> None:
    """Raise CorruptBufferError where a Box has a shape of other size than its bounds, which would be made as large."""
    if not isinstance(space, dict):
        raise CorruptBufferError(f"{name}: expected a space, got {type(space).__name__}")
    if space.get("type") == "Box" and not _size(space["low"]) == _size(space["high"]) == math.prod(space["shape"]):
        raise CorruptBufferError(f"{name}: the bounds of a Box are not of its shape {space['shape']!r:.60}")
    children = space.get("subspaces", [])
    for child in children.values() if isinstance(children, dict) else children:
        _check_space(name, child)


def _size(nested: Any) -> int:
    return sum(map(_size, nested)) if isinstance(nested, list) else 1


# --- episodes of a dataset ---


def read_metadata(source: Any, number: int) -> dict[str, Any]:
    """The metadata of an episode.

    Raises:
        CorruptBufferError: they are damaged.
    """
    try:
        (metadata,) = source.storage.get_episode_metadata([number])
    except Exception as error:  # whatever Minari and the packages below it raise of a damaged dataset
        raise CorruptBufferError(f"Minari cannot read its metadata: {type(error).__name__}: {error}") from error
    return dict(metadata)


def read_episode(source: Any, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An episode and its metadata.

    Minari is asked for one: of Arrow files it reads ahead through all that it is asked for, an open HDF5 file takes
    memory for each episode that was read from it, and where one is damaged those after it would not come.

    Raises:
        CorruptBufferError: it is damaged.
        FieldError: it has no steps.
    """
    metadata, storage = read_metadata(source, number), source.storage
    try:
        _check_episode(storage, number)
        values = _episode(storage, number)
    except GymReplayError:
        raise
    except Exception as error:  # as above
        raise CorruptBufferError(f"Minari cannot read it: {type(error).__name__}: {error}") from error
    length, noted = len(values["rewards"]), metadata.get("total_steps")
    if noted is not None and int(noted) != length:
        raise CorruptBufferError(
            f"it has {int(noted)} steps, and Minari gives {length}; of Arrow and Parquet files it reads up to "
            f"{LONGEST_ARROW}"
        )
    if not length:
        raise FieldError("an episode without steps")
    return values, metadata


def _check_episode(storage: Any, number: int) -> None:
    """Raise CorruptBufferError where an episode is larger than its file can hold, or lies in other files."""
    path = Path(storage.data_path)
    if storage.FORMAT == "hdf5":
        with import_module("h5py").File(path / _FILE, "r") as file:
            _, links = data_sets(file[f"episode_{number}"], path / _FILE)
        if links:
            raise CorruptBufferError(f"{links[0]} is a link, which is not followed; h5repack makes one file")
        return
    for file in (path / str(number)).iterdir():
        if file.suffix in (".arrow", ".parquet"):
            rows = import_module("pyarrow.dataset").dataset(file, format=storage.FORMAT).count_rows()
            check_claim(file, rows)


def _episode(storage: Any, number: int) -> dict[str, Any]:
    """An episode as Minari reads it; infos of Arrow and Parquet files are read here.

    Of these, Minari's own reader gives nested ones as arrays of dicts, in which dtypes and shapes are lost, and gives
    up where the rows of one differ in size.
    """
    infos = None if storage.FORMAT == "hdf5" else _arrow_infos(storage, number)
    try:
        (values,) = storage.get_episodes([number])
    except ValueError:
        if infos is None:
            raise
        values = _read_without_infos(storage, number)
    return dict(values) if infos is None else {**values, "infos": infos}


def _arrow_infos(storage: Any, number: int) -> dict[str, Any]:
    found = _arrow_files(storage, number)
    if "infos" not in found.schema.names:
        return {}
    column = found.to_table(columns=["infos"]).column("infos").combine_chunks()
    if hasattr(column, "num_chunks"):  # what combine_chunks gives differs from version to version
        column = column.chunk(0)
    return _decode_struct(column)


def _arrow_files(storage: Any, number: int) -> Any:
    return import_module("pyarrow.dataset").dataset(
        f"{storage.data_path}/{number}", format=storage.FORMAT, ignore_prefixes=["_", ".", "metadata.json"]
    )


def _read_without_infos(storage: Any, number: int) -> dict[str, Any]:
    """What Minari reads of a copy of an episode that has no infos."""
    found = _arrow_files(storage, number)
    columns = found.to_table(columns=[name for name in found.schema.names if name != "infos"])
    with tempfile.TemporaryDirectory(prefix="gym-replay-") as folder:
        import_module("pyarrow.dataset").write_dataset(columns, Path(folder, str(number)), format=storage.FORMAT)
        spaces = storage.observation_space, storage.action_space
        copied = type(storage)(Path(folder), *spaces, jpeg_encoding=storage.jpeg_encoding)
        (values,) = copied.get_episodes([number])
        return dict(values)


def _decode_struct(column: Any) -> dict[str, Any]:
    types = import_module("pyarrow").types
    infos: dict[str, Any] = {}
    for index, field in enumerate(column.type):
        values = column.field(index)
        if types.is_struct(field.type):
            infos[field.name] = _decode_struct(values)
        elif types.is_fixed_size_list(field.type):
            # Minari notes the shape beside a list of all elements, and nothing where each row is one number.
            noted = (field.metadata or {}).get(b"shape")
            shape = [field.type.list_size] if noted is None else [int(size) for size in noted.split(b",") if size]
            infos[field.name] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), *shape)
        else:
            infos[field.name] = values.to_numpy(zero_copy_only=False)
    return infos


# --- datasets of Minari 0.4 ---


class _OldStorage:
    """The part of Minari's ``MinariStorage`` that an import needs, for a dataset of Minari 0.4.

    Args:
        data_path: the folder of the HDF5 file.
        metadata: of the dataset, as the file has it.
        spaces: of observations and actions.
    """

    FORMAT = "hdf5"

    def __init__(self, data_path: Path, metadata: dict[str, Any], spaces: tuple[Space[Any], Space[Any]]) -> None:
        self.data_path, self.metadata = data_path, metadata
        cls = import_module("minari.dataset._storages").get_minari_storage("hdf5")
        self.get_episodes = cls(data_path, *spaces, jpeg_encoding=False).get_episodes

    def get_episode_metadata(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The metadata of episodes."""
        with import_module("h5py").File(self.data_path / _FILE, "r") as file:
            for number in numbers:
                attributes = dict(file[f"episode_{number}"].attrs)
                if attributes.get("seed") == "None":  # of a reset without one
                    del attributes["seed"]
                yield attributes


def _is_old(data_path: Path) -> bool:
    """Whether the folder holds a dataset of Minari 0.4."""
    return (data_path / _FILE).is_file() and not (data_path / "metadata.json").exists()


def _old_metadata(data_path: Path) -> dict[str, Any]:
    """What the file says of the dataset."""
    with import_module("h5py").File(data_path / _FILE, "r") as file:
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}


def _open_old(dataset_id: str, data_path: Path, metadata: dict[str, Any]) -> Any:
    """The part of Minari's ``MinariDataset`` that an import needs, of a dataset of Minari 0.4.

    Raises:
        UnsupportedFormatError: it is of a version that did not note the spaces.
    """
    texts = [metadata.get(f"{kind}_space") for kind in ("observation", "action")]
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedFormatError(
            f"{dataset_id!r} was written by a Minari before 0.4, which did not note its spaces; open it with that "
            "version, and pass its episodes to from_trajectories"
        )
    deserialize = import_module("minari.serialization").deserialize_space
    observation, action = (deserialize(text) for text in texts)
    spec = None
    if "env_spec" in metadata:  # without the members that Gymnasium has given up since
        known = {field.name for field in dataclasses.fields(EnvSpec)}
        members = {name: value for name, value in json.loads(metadata["env_spec"]).items() if name in known}
        spec = EnvSpec.from_json(json.dumps(members))
    return SimpleNamespace(
        id=dataset_id,
        storage=_OldStorage(data_path, metadata, (observation, action)),
        observation_space=observation,
        action_space=action,
        env_spec=spec,
        episode_indices=np.arange(metadata["total_episodes"]),
    )
