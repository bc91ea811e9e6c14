"""Public packages that keep frames compressed at random access, for ``benchmarks.frames``.

Each is given the row numbers of a batch, and has nothing to do but to fetch and decode them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.frames_scenes import Frames
from benchmarks.peers import Use, torchrl_data

Rows = npt.NDArray[np.int64]


class Kept(NamedTuple):
    """Frames in a package's storage.

    Attributes:
        read: the frames of a batch, ``(samples, length, *shape)``, of row numbers ``(samples, length)`` that follow one
            another in each sample.
        nbytes: what all frames take.
    """

    read: Callable[[Rows], Any]
    nbytes: int


Keep = Callable[[Frames, Path, int], Kept]
"""Stores frames ``(count, *shape)`` of episodes of so many in a folder that does not exist."""


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the files among these paths."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def lance(frames: Frames, folder: Path, length: int) -> Kept:
    """A column of binary values, which Lance compresses one by one."""
    package, arrow = import_module("lance"), import_module("pyarrow")
    field = arrow.field("frame", arrow.binary(), metadata={b"lance-encoding:compression": b"zstd"})
    column = arrow.array([frame.tobytes() for frame in frames], arrow.binary())
    package.write_dataset(arrow.table([column], arrow.schema([field])), str(folder), data_storage_version="2.2")
    dataset = package.dataset(str(folder))
    shape = frames.shape[1:]

    def read(rows: Rows) -> Any:
        distinct, inverse = np.unique(rows, return_inverse=True)
        out = np.empty((len(distinct), *shape), np.uint8)
        values = dataset.take(distinct).column("frame")
        for k, value in enumerate(values):
            out[k] = np.frombuffer(value.as_buffer(), np.uint8).reshape(shape)
        return torch.from_numpy(out[inverse].reshape(*rows.shape, *shape))

    return Kept(read, size_of(folder.rglob("*")))


def zarr(frames: Frames, folder: Path, length: int) -> Kept:
    """A chunk for each frame, read window by window, as Diffusion Policy's ReplayBuffer and SequenceSampler do."""
    blosc = import_module("numcodecs").Blosc("zstd", clevel=5, shuffle=0)
    array = import_module("zarr").create_array(
        str(folder), shape=frames.shape, chunks=(1, *frames.shape[1:]), dtype="u1", zarr_format=2, compressors=blosc
    )
    array[:] = frames

    def read(rows: Rows) -> Any:
        return torch.from_numpy(np.stack([array[first : first + rows.shape[1]] for first in rows[:, 0].tolist()]))

    return Kept(read, size_of(folder.rglob("*")))


def hdf5(frames: Frames, folder: Path, length: int) -> Kept:
    """A chunk for each frame, gzip, read window by window."""
    folder.mkdir()
    file = import_module("h5py").File(folder / "frames.h5", "w")
    shape = frames.shape[1:]
    data = file.create_dataset("frames", data=frames, chunks=(1, *shape), compression="gzip", compression_opts=4)
    file.flush()

    def read(rows: Rows) -> Any:
        return torch.from_numpy(np.stack([data[first : first + rows.shape[1]] for first in rows[:, 0].tolist()]))

    return Kept(read, size_of(folder.rglob("*")))


def torchrl(frames: Frames, folder: Path, length: int) -> Kept:
    """A CompressedListStorage in memory, with its own compression."""
    make = import_module("tensordict").TensorDict
    storage = torchrl_data().CompressedListStorage(max_size=len(frames))
    storage.set(range(len(frames)), [make({"observation": torch.from_numpy(frame)}, []) for frame in frames])
    shape = frames.shape[1:]

    def read(rows: Rows) -> Any:
        distinct, inverse = np.unique(rows, return_inverse=True)
        found = torch.stack([one["observation"] for one in storage.get(distinct.tolist())])
        return found[torch.from_numpy(inverse)].reshape(*rows.shape, *shape)

    return Kept(read, sum(item["observation"].numel() for item in storage._storage))


def video(frames: Frames, folder: Path, length: int, *, codec: str, every: int, options: dict[str, str]) -> Kept:
    """A file for each episode; a window is sought at the key frame before it, and decoded from there on."""
    av = import_module("av")
    folder.mkdir()
    is_grey = frames.ndim == 3
    pixels = "rgb24" if codec == "libx264rgb" else "yuv420p"
    paths = []
    for first in range(0, len(frames), length):
        paths.append(folder / f"{first}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(codec, rate=30, options={**options, "g": str(every)})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
            for frame in frames[first : first + length]:
                colours = np.repeat(frame[..., None], 3, axis=-1) if is_grey else frame
                container.mux(stream.encode(av.VideoFrame.from_ndarray(colours, format="rgb24")))
            container.mux(stream.encode())
    containers = [av.open(str(path)) for path in paths]  # opened once, as a cache of decoders would

    def window(first: int, count: int) -> list[Frames]:
        episode, at = divmod(first, length)
        stream = containers[episode].streams.video[0]
        ticks = 1 / (30 * stream.time_base)
        containers[episode].seek(round(at * ticks), stream=stream)
        found: list[Frames] = []
        for frame in containers[episode].decode(stream):
            if round(frame.pts / ticks) >= at:
                colours = frame.to_ndarray(format="rgb24")
                found.append(colours[..., 0] if is_grey else colours)
                if len(found) == count:
                    break
        return found

    def read(rows: Rows) -> Any:
        return torch.from_numpy(np.stack([window(first, rows.shape[1]) for first in rows[:, 0].tolist()]))

    return Kept(read, size_of(paths))


LOSSLESS: dict[str, Use[Keep]] = {
    "Lance": Use("Lance", "a binary column with zstd, file format 2.2; take() of the distinct rows of a batch", lance),
    "zarr": Use("zarr", "a chunk a frame, Blosc zstd 5 of numcodecs, a slice a window (Diffusion Policy)", zarr),
    "torchrl": Use(
        "torchrl", "CompressedListStorage as it comes (zlib 3 before Python 3.14); distinct rows of a batch", torchrl
    ),
    "HDF5": Use("h5py", "a chunk a frame, gzip 4, a slice a window", hdf5),
    "MP4, lossless": Use(
        "PyAV",
        "H.264 with qp=0, a key frame every 10, a file an episode; seek, then decode",
        partial(video, codec="libx264rgb", every=10, options={"qp": "0", "preset": "ultrafast"}),
    ),
}
LOSSY: dict[str, Use[Keep]] = {
    "MP4, lossy": Use(
        "PyAV",
        "H.264 with crf=23 and 4:2:0, a key frame every 2, a file an episode; seek, then decode",
        partial(video, codec="libx264", every=2, options={"crf": "23", "preset": "veryfast"}),
    ),
}
