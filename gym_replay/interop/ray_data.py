"""Samples for Ray Data: read tasks by buffer and by block of episodes, which a cluster runs and streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gym_replay.buffer.concat import ConcatReplayBuffer, Source
from gym_replay.buffer.door import Snapshot
from gym_replay.errors import EmptyBufferError, FieldError
from gym_replay.extras import require
from gym_replay.remote.objects.store import is_url

if TYPE_CHECKING:
    import ray.data

Sources: TypeAlias = "Source | Sequence[Source]"
"""Folders, patterns, addresses and buffers."""

EXTRA = "ray"

TASK_BYTES = 128 << 20
"""Bytes of rows, as they are when they are decoded, that one read task reads."""

_BATCH_BYTES = 16 << 20
_NOT_HERE = {"normalize": "map_batches", "batch_format": "map_batches", "nested": "map_batches"}


def to_ray_dataset(
    sources: Sources,
    *,
    n_steps: int | None = None,
    window: int | None = None,
    task_bytes: int = TASK_BYTES,
    storage_options: Mapping[str, Any] | None = None,
    ray_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> ray.data.Dataset:
    """The samples of buffers as a Ray dataset, which is read when it is iterated, by as many workers as there are.

    Each read task has the whole episodes of one block of one buffer: it opens the folder, or fetches the rows from the
    address, and gives samples in their order. So no sample crosses tasks, and nobody needs all of the data. Shuffling,
    splitting among trainers and everything else of distribution is Ray Data's: ``random_shuffle``,
    ``randomize_block_order``, ``streaming_split``, ``iter_torch_batches``.

    Args:
        sources: folders, patterns, addresses that were pushed to, or buffers; workers must reach the folders under the
            same paths.
        n_steps: n for n-step transitions, as of :func:`~gym_replay.n_step_loader`.
        window: a length in steps, for windows as of :func:`~gym_replay.window_loader`; without both of them samples are
            single timesteps, as of :func:`~gym_replay.timestep_loader`.
        task_bytes: bytes of rows of one read task.
        storage_options: what fsspec's file systems are made with, for addresses.
        ray_options: of ``ray.data.read_datasource``, such as ``concurrency``.
        options: what those loaders take that says what a sample is: ``fields``, ``gamma``, ``episodes``, ``dtype``, ...

    Returns:
        A ``ray.data.Dataset`` with a column for each entry of a batch. Ray makes no tensors of strings, nor of ragged
        rows: before ``iter_torch_batches``, leave them out with ``fields`` or ``drop_columns``.

    Raises:
        BufferNotFoundError: there is nothing at a source.
        ConfigMismatchError: the buffers have other fields than one another.
        EmptyBufferError: no episode is chosen.
        FieldError: an option is wrong, or is none of samples.
        MissingExtraError: the extra ``ray`` is not installed.

    Example:
        >>> data = to_ray_dataset("data/shards", n_steps=3)  # doctest: +SKIP
        >>> for batch in data.iter_torch_batches(batch_size=256):  # doctest: +SKIP
        ...     train(batch["observation"], batch["action"])
    """
    for part in ("ray", "pandas", "pyarrow"):  # Ray comes without the two others, and Ray Data needs them
        require(part, EXTRA, "to_ray_dataset")
    data = require("ray.data", EXTRA, "to_ray_dataset")
    if n_steps is not None and window is not None:
        raise FieldError("n_steps and window exclude one another: each says what a sample is")
    if wrong := [name for name in options if name in _NOT_HERE]:
        raise FieldError(f"{wrong[0]}: Ray Data's own {_NOT_HERE[wrong[0]]} does this, over all tasks")
    kind = "timestep"
    if n_steps is not None:
        kind, options["n_steps"] = "n_step", n_steps
    elif window is not None:
        kind, options["length"] = "window", window
    with _opened(sources, storage_options) as buffer:
        blocks = _blocks(buffer, options, task_bytes)
        first = next(_samples(blocks[0].only(slice(1)), kind, options))  # so that what is wrong is an error now
    row_nbytes = sum(array.nbytes for array in first.values()) / max(len(next(iter(first.values()))), 1)
    source = _datasource()(blocks, partial(_samples, kind=kind, options=options), row_nbytes)
    return data.read_datasource(source, **{"override_num_blocks": len(blocks), **(ray_options or {})})


def _opened(sources: Sources, storage_options: Mapping[str, Any] | None) -> ConcatReplayBuffer:
    """All sources as one."""
    listed: list[Any] = [*sources] if isinstance(sources, (list, tuple)) else [sources]
    from_url = partial(ConcatReplayBuffer.from_url, storage_options=storage_options)
    return ConcatReplayBuffer([from_url(each) if is_url(each) else each for each in listed])


def _blocks(buffer: ConcatReplayBuffer, options: dict[str, Any], task_bytes: int) -> list[Snapshot]:
    """The chosen episodes of each buffer in blocks of about so many bytes."""
    from gym_replay.buffer.loading.selection import EpisodeValues, selected

    parts = buffer.snapshots()
    chosen = selected(EpisodeValues(parts), options.pop("episodes", None), options.pop("filter_meta", None))
    found, begin = [], 0
    for part in parts:
        mine = part.only(np.flatnonzero(chosen[begin : begin + len(part)]))
        begin += len(part)
        width = max(1, sum(info.nbytes for info in part.metadata.fields.values()))
        owners = np.cumsum(mine.lengths) * width // max(task_bytes, 1)
        edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(mine)]
        found += [mine.only(slice(low, high)) for low, high in pairwise(edges) if low < high]
    if not found:
        raise EmptyBufferError("to_ray_dataset: no episode is chosen")
    return found


def _samples(part: Snapshot, kind: str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The samples of some episodes of one buffer, as batches of arrays."""
    from gym_replay.buffer.loading.loaders import make_dataset

    with part.reader.hold():
        dataset = make_dataset([part], kind, **options)
        part.expect(dataset.entries.read_fields)
        begin, step = 0, 1
        while begin < len(dataset):
            batch = dataset[np.arange(begin, min(begin + step, len(dataset)))]
            arrays = {name: _as_array(values) for name, values in batch.items()}
            yield arrays
            begin += step
            nbytes = sum(array.nbytes for array in arrays.values()) / step
            step = max(1, math.floor(_BATCH_BYTES / max(nbytes, 1)))


def _as_array(values: Any) -> Any:
    return np.array(values, object) if isinstance(values, list) else values.numpy()


@lru_cache(maxsize=1)
def _datasource() -> Callable[..., Any]:
    """The class of Ray Data that is given to it: it needs the package to be there."""
    from ray.data.block import BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read(part: Snapshot, samples: Callable[[Snapshot], Iterator[dict[str, Any]]]) -> Iterator[Any]:
        return map(BlockAccessor.batch_to_block, samples(part))

    class Samples(Datasource):  # type: ignore[misc]
        """Blocks of episodes, a read task each."""

        def __init__(
            self, blocks: list[Snapshot], samples: Callable[[Snapshot], Iterator[dict[str, Any]]], row_nbytes: float
        ) -> None:
            self._blocks, self._samples, self._row_nbytes = blocks, samples, row_nbytes

        def get_name(self) -> str:
            return "GymReplay"

        def estimate_inmemory_data_size(self) -> int:
            return sum(map(self._nbytes, self._blocks))

        def _nbytes(self, part: Snapshot) -> int:
            return int(part.num_steps * self._row_nbytes)

        def get_read_tasks(self, parallelism: int, *details: Any, **more: Any) -> list[Any]:
            return [ReadTask(partial(read, part, self._samples), self._told(part)) for part in self._blocks]

        def _told(self, part: Snapshot) -> Any:
            files, nbytes = [str(part.reader.folder)], self._nbytes(part)
            return BlockMetadata(num_rows=None, size_bytes=nbytes, exec_stats=None, input_files=files)

    return Samples
