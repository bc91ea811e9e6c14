"""Replay buffers of TorchRL over the files of a buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gym_replay.buffer.door import snapshots_of
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.interop.transitions import NamesLike, Transitions

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.replay_buffer import ReplayBuffer


def to_torchrl(
    buffer: ReplayBuffer,
    batch_size: int | None = None,
    *,
    slice_len: int | None = None,
    sampler: Any = None,
    names: NamesLike | None = None,
    episodes: Episodes | None = None,
    **options: Any,
) -> Any:
    """A TorchRL replay buffer whose storage is the files themselves.

    The storage is a ``LazyMemmapStorage`` that is full: its tensors are maps of the ``.npy`` files, so nothing is
    copied but the samples. It cannot be written to; ``extend`` is an error. It holds the episodes that are live now,
    and goes to another process as a path.

    Samples are laid out as TorchRL's data format has them (its ``TED``): at the root ``observation``, ``action`` and
    ``episode``, and below ``next`` the ``observation`` that followed, ``reward``, ``terminated``, ``truncated`` and
    ``done`` ``(batch, 1)``. The parts of a nested space are nested: ``("observation", "camera", "rgb")``. Fields that
    are stored as float64 come in torch's default dtype. All other fields are at the root as they are.

    Args:
        buffer: a ReplayBuffer that is not circular; join several with TorchRL's ``ReplayBufferEnsemble``.
        batch_size: for ``sample()``.
        slice_len: draw slices of so many consecutive transitions of one episode, with TorchRL's ``SliceSampler``;
            shorter episodes are left out, and ``batch_size`` counts transitions.
        sampler: another sampler of TorchRL's. A ``SliceSampler`` of your own needs ``cache_values=True``: without, it
            reads all of the storage for each batch.
        names, episodes: as for :func:`gym_replay.to_d4rl`.
        options: for ``torchrl.data.TensorDictReplayBuffer``: ``transform``, ``prefetch``, ...

    Raises:
        MissingExtraError: TorchRL is not installed.
        FieldError: the buffer is circular or a concatenation, or a part is missing.
        EmptyBufferError: there is no transition.

    Example:
        >>> replay = to_torchrl(buffer, 256)  # doctest: +SKIP
        >>> loss = loss_module(replay.sample())  # doctest: +SKIP
        >>> slices = to_torchrl(buffer, 256, slice_len=16).sample().reshape(-1, 16)  # doctest: +SKIP
    """
    data = require("torchrl.data", "torchrl", "to_torchrl")
    parts = snapshots_of(buffer)
    if len(parts) != 1 or parts[0].metadata.circular:
        raise FieldError(
            "to_torchrl takes one buffer that is not circular: its files are shared as they are. Join several with "
            "torchrl.data.ReplayBufferEnsemble, and load from a circular one with its own dataloader"
        )
    from gym_replay.interop.torchrl.storage import SharedStorage

    transitions = Transitions(buffer, names=names, episodes=episodes)
    storage = SharedStorage.over(transitions)
    if slice_len is not None:
        if sampler is not None:
            raise FieldError("slice_len and sampler exclude one another; give the sampler its own slice_len")
        sampler = data.SliceSampler(slice_len=slice_len, ends=storage.ends, cache_values=True)
    if sampler is not None:
        options["sampler"] = sampler
    if batch_size is not None:
        options["batch_size"] = batch_size
    return data.TensorDictReplayBuffer(storage=storage, **options)
