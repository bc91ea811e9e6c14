"""Ways to keep frames on the disk or at an S3 server, and to read windows, for ``benchmarks.remote_windows``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.frames_peers import size_of
from gym_replay import Field, ReplayBuffer, export_lerobot, push, window_loader

SHAPE, WINDOW, BATCH, FPS = (96, 96, 3), 4, 32, 10
Windows = Iterator[tuple[Any, Any]]
"""Batches: episodes and first steps ``(batch, 2)``, and the frames ``(batch, 4, 96, 96, 3)``."""


class Place(NamedTuple):
    """Where contenders keep frames ``(episodes, steps, 96, 96, 3)``: a folder, and a bucket where there is a server."""

    frames: Any
    folder: Path
    bucket: str
    options: dict[str, Any]

    def put(self, folder: Path) -> str:
        """The address of a folder's copy in the bucket."""
        there = f"{self.bucket}/{folder.name}"
        import_module("s3fs").S3FileSystem(**self.options).put(f"{folder}/", f"{there}/", recursive=True)
        return f"s3://{there}"

    def drawn(self, read: Callable[[Any], Any]) -> Windows:
        """Random windows, of which ``read`` gives the frames by row numbers ``(batch, 4)`` of all episodes in turn."""
        rng, (episodes, steps) = np.random.default_rng(0), self.frames.shape[:2]
        while True:
            which = np.stack([rng.integers(0, end, BATCH) for end in (episodes, steps - WINDOW + 1)], axis=1)
            yield which, read(which[:, :1] * steps + which[:, 1:] + np.arange(WINDOW))


def ours(place: Place, remote: bool) -> tuple[Windows, int]:
    folder, buffer = place.folder / "ours", ReplayBuffer
    if not folder.exists():
        made = buffer(folder, fields={"observation": Field("uint8", SHAPE, codec="zstd")})
        for episode in place.frames:
            made.store_episode(observation=episode)
        made.close()
    options: dict[str, Any] = {"length": WINDOW, "boundary": "drop", "return_indices": True, "seed": 0}
    url, options["shuffle"] = f"s3://{place.bucket}/ours", True
    if remote:
        push(folder, url, storage_options=place.options, progress=False)
        options |= {"shuffle": "block", "pool_size": max(BATCH, place.frames[..., 0, 0, 0].size // 8)}

    def opened() -> ReplayBuffer:
        if not remote:
            return buffer.from_folder(folder, read_only=True)
        return buffer.from_url(url, storage_options=place.options, cache=place.folder / "cache")  # which is empty

    batches = itertools.chain.from_iterable(window_loader(opened(), BATCH, **options) for _ in itertools.count())
    return ((batch["_indices"], batch["observation"]) for batch in batches), size_of(folder.rglob("*"))


def lance(place: Place, remote: bool) -> tuple[Windows, int]:
    package, arrow, folder = import_module("lance"), import_module("pyarrow"), place.folder / "lance"
    if not folder.exists():
        field = arrow.field("frame", arrow.binary(), metadata={b"lance-encoding:compression": b"zstd"})
        values = arrow.array([frame.tobytes() for episode in place.frames for frame in episode], arrow.binary())
        package.write_dataset(arrow.table([values], arrow.schema([field])), str(folder), data_storage_version="2.2")
    address, options = str(folder), None
    if remote:
        address, names = place.put(folder), {"key": "aws_access_key_id", "secret": "aws_secret_access_key"}
        options = {name: place.options[key] for key, name in names.items()}
        options |= {"aws_endpoint": place.options["endpoint_url"], "allow_http": "true", "aws_region": "us-east-1"}
    dataset = package.dataset(address, storage_options=options)

    def read(rows: Any) -> Any:
        distinct, inverse = np.unique(rows, return_inverse=True)
        values = [np.frombuffer(value.as_buffer(), np.uint8) for value in dataset.take(distinct).column("frame")]
        return torch.from_numpy(np.stack(values)[inverse].reshape(*rows.shape, *SHAPE))

    return place.drawn(read), size_of(folder.rglob("*"))


def zarr(place: Place, remote: bool) -> tuple[Windows, int]:
    package, folder = import_module("zarr"), place.folder / "zarr"
    if not folder.exists():
        flat = place.frames.reshape(-1, *SHAPE)
        options: dict[str, Any] = {"shape": flat.shape, "chunks": (1, *SHAPE), "dtype": "u1", "zarr_format": 2}
        blosc = import_module("numcodecs").Blosc("zstd", clevel=5, shuffle=0)
        package.create_array(str(folder), **options, compressors=blosc)[:] = flat
    address = place.put(folder) if remote else str(folder)
    array = package.open_array(address, mode="r", storage_options=place.options if remote else None)

    def read(rows: Any) -> Any:  # each window is a slice, whose chunks are fetched at once
        return torch.from_numpy(np.stack([array[first : first + WINDOW] for first in rows[:, 0].tolist()]))

    return place.drawn(read), size_of(folder.rglob("*"))


class VideoReader:
    """What LeRobot 0.4 uses of the class of this name that torchvision had before 0.26, with PyAV as that had it."""

    def __init__(self, path: str, kind: str) -> None:
        self.container = import_module("av").open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, at: float, keyframes_only: bool) -> None:
        self.container.seek(int(at / self._stream.time_base), stream=self._stream)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for frame in self.container.decode(self._stream):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": pixels, "pts": float(frame.pts * self._stream.time_base)}


def lerobot(place: Place, remote: bool) -> tuple[Windows, int]:
    ours(place, False)
    folder, key = place.folder / "lerobot", "observation.images.it"
    export_lerobot(place.folder / "ours", folder, fps=FPS, task="look", keys={"observation": key}, progress=False)
    global operators  # which go with the library that defines them
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):  # of another torch than LeRobot pins, torchvision's compiled ones are not there
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import_module("torchvision.io").VideoReader = VideoReader
    times = {key: [step / FPS for step in range(WINDOW)]}
    made = import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    dataset = made("me/it", root=folder, video_backend="pyav", delta_timestamps=times)

    def read(rows: Any) -> Any:
        found = torch.stack([dataset[first][key] for first in rows[:, 0].tolist()])
        return (found * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2)

    return place.drawn(read), size_of((folder / "videos").rglob("*"))


S3 = ("s3fs", "moto", "flask")
CONTENDERS: dict[str, tuple[Any, bool, tuple[str, ...], float]] = {
    "gym_replay, disk": (ours, False, ("numcodecs",), 0),
    "gym_replay, S3": (ours, True, ("numcodecs", *S3), 0),
    "Lance, disk": (lance, False, ("lance", "pyarrow"), 0),
    "Lance, S3": (lance, True, ("lance", "pyarrow", *S3), 0),
    "zarr, disk": (zarr, False, ("zarr", "numcodecs"), 0),
    "zarr, S3": (zarr, True, ("zarr", "numcodecs", *S3), 0),
    "LeRobot with video, disk": (lerobot, False, ("lerobot", "av"), 12),
}
