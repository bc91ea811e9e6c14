"""Old data as arrays by name: of files of HDF5 and NumPy, which may be strangers', and of mappings."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.extras import require
from gym_replay.files.folders import local_path
from gym_replay.interop.hdf5 import check_claim, data_sets
from gym_replay.schema.arrays import Array


@contextmanager
def opened_arrays(source: Any, what: str) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
    """The arrays of a file or a mapping by name, of which rows can be taken without reading all of them.

    Args:
        source: an HDF5 file, an ``.npz`` file, or a mapping from names to arrays, also of mappings.
        what: the function that reads it, for messages.

    Yields:
        The arrays, ``a/b`` of a mapping or group ``a``, and lines about links among them, which are not followed.

    Raises:
        MissingExtraError: it is an HDF5 file, and h5py is not installed.
        FieldError: two arrays of a mapping have one name.
        CorruptBufferError: the file cannot be read, or claims to be larger than it can be.
    """
    if isinstance(source, Mapping):
        yield _flattened(source), []
        return
    path = Path(local_path(source))
    with open(path, "rb") as file:
        magic = file.read(8)
    with ExitStack() as stack:
        if magic.startswith(b"PK"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gym-replay-"))
            yield _unpacked(path, Path(folder)), []
        elif magic == b"\x89HDF\r\n\x1a\n":
            h5py = require("h5py", "hdf5", f"{what} of an HDF5 file")
            found, links = data_sets(stack.enter_context(h5py.File(path, "r")), path)
            yield found, [f"{name}: it is a link" for name in links]
        else:
            raise CorruptBufferError(f"{path}: expected an HDF5 or an .npz file, got one that begins with {magic!r}")


def _flattened(source: Mapping[Any, Any], root: str = "") -> dict[str, Array]:
    """The arrays of nested mappings by their names, ``a/b`` below another.

    Raises:
        FieldError: two of them have one name.
    """
    flat: dict[str, Array] = {}
    for key, value in source.items():
        name = f"{root}{key}"
        inner = _flattened(value, f"{name}/") if isinstance(value, Mapping) else {name: np.asarray(value)}
        if doubled := [name for name in inner if name in flat]:
            raise FieldError(f"the data set has {doubled[0]!r} twice; leave one out")
        flat |= inner
    return flat


def _unpacked(path: Path, folder: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file, each unpacked into a file and mapped: none of them need fit into memory."""
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_claim(path, sum(member.file_size for member in members))
            for number, member in enumerate(members):
                plain = folder / f"{number}.npy"
                with archive.open(member) as packed, open(plain, "wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise CorruptBufferError(f"{path}: it has {name!r} twice")
                arrays[name] = np.load(plain, mmap_mode="r", allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise CorruptBufferError(f"{path}: {error}") from None
    return arrays
