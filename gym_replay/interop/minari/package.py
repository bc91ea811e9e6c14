"""The package minari: found at first use, and what is relied on of it.

Every use of it goes through its public storage interface, ``MinariStorage``: ``new``, ``read``, ``update_episodes``,
``get_episodes`` and the metadata. What that interface gives back wrongly or not at all is said in
:mod:`gym_replay.interop.minari.limits`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gym_replay.errors import (
    BufferNotFoundError,
    FieldError,
    GymReplayError,
    MissingExtraError,
    UnsupportedFormatError,
)
from gym_replay.interop.minari import old_versions
from gym_replay.interop.minari.claims import check_metadata

FORMATS = ("hdf5", "arrow", "parquet")
"""Minari's storage formats."""

_OLDEST = (0, 5, 4)
"""The first version that keeps images as they are where it is asked to."""

_RAW_IMAGES = ("0.5.0", "0.5.1", "0.5.2")

_PACKAGE_OF = {"hdf5": "h5py", "arrow": "pyarrow", "parquet": "pyarrow"}


def find_minari(data_format: str | None = None) -> Any:
    """The module ``minari``, with what it needs for a storage format.

    Raises:
        MissingExtraError: it, or what it needs, is not installed.
        FieldError: there is no such format.
    """
    if data_format is not None and data_format not in FORMATS:
        raise FieldError(f"data_format={data_format!r}: expected one of {FORMATS}")
    try:
        minari = import_module("minari")
        import_module("PIL")
        if data_format is not None:
            import_module(_PACKAGE_OF[data_format])
    except ImportError as error:
        raise MissingExtraError(
            f"Minari datasets need a package that is missing ({error}); pip install 'gym-replay[minari]'"
        ) from error
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
            f"dataset id {dataset_id!r}: expected (namespace/)name-v(version), such as 'cartpole/random-v0', of "
            "letters, digits, - and _, and in the namespace at least two of them"
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
        return with_images_as_stored(minari, dataset)
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
        if old_versions.is_old(data):
            find_minari("hdf5")
            metadata = old_versions.read_metadata(data)
        else:
            metadata = storage_class().read_raw_metadata(data)
            find_minari(metadata.get("data_format"))
        check_metadata(data, metadata)
        if old_versions.is_old(data):
            return old_versions.open_old(dataset, data, metadata)
        return with_images_as_stored(minari, minari.load_dataset(dataset))
    except GymReplayError:
        raise
    except Exception as error:  # of another version of Minari, or of spaces that the installed Gymnasium refuses
        raise UnsupportedFormatError(
            f"Minari {minari.__version__} cannot open {dataset!r}: {type(error).__name__}: {error}"
        ) from error


def with_images_as_stored(minari: Any, dataset: Any) -> Any:
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
