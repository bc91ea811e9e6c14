"""Batches with an exact share of each of two buffers: what was recorded before, and what is being recorded now."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from typing_extensions import Unpack

from gym_replay.buffer.loading.collate import Batch
from gym_replay.buffer.loading.devices import check_device, to_device
from gym_replay.buffer.loading.loaders import make_loader
from gym_replay.buffer.loading.options import RandomOptions
from gym_replay.buffer.loading.replay_loader import ReplayLoader
from gym_replay.buffer.loading.sampling import Live, RandomBatches, refuse_orders
from gym_replay.buffer.storage.reader import require_buffer
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError, FieldError
from gym_replay.schema.arguments import checked_integer, checked_number

ONLINE = "_online"
"""The entry that says of which side each sample is."""


class _Side(Protocol):
    """Where one part of each batch comes from."""

    def prepare(self) -> None:
        """Raise EmptyBufferError where there is no batch."""

    def next_batch(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class _Epochs:
    """One side, epoch after epoch, each without any sample twice: full batches of a shuffled loader."""

    def __init__(self, name: str, buffer: Live, count: int, options: Mapping[str, Any]) -> None:
        self._name, self._buffer, self._count, self._options = name, buffer, count, dict(options)
        self._loader: ReplayLoader | None = None
        self._batches: Iterator[Batch] = iter(())
        self._state: Mapping[str, Any] = {"seed": options["seed"]}  # to go on from, once there is a loader

    def prepare(self) -> None:
        self._ready()

    def _ready(self) -> ReplayLoader:
        if self._loader is None:
            options = {**self._options, "seed": self._state["seed"], "shuffle": True, "drop_last": True}
            given = {"buffer": self._buffer, "batch_size": self._count, "options": options}
            loader = make_loader("n_step", given, may_be_empty=True)
            if not len(loader):
                raise self._too_few(len(loader.sampler))
            if len(self._state) > 1:
                loader.load_state_dict(self._state)
            self._loader = loader
        return self._loader

    def _too_few(self, samples: int) -> EmptyBufferError:
        remedy = "record more, or take a smaller batch_size"
        if self._name == "online":
            remedy = "record more, take a smaller batch_size, or draw with replacement: refresh='batch'"
        return EmptyBufferError(
            f"there are {samples} samples, and each batch takes {self._count} of this side, none twice; {remedy}"
        )

    def next_batch(self) -> Batch:
        loader = self._ready()
        for batch in self._batches:
            return batch
        self._batches = iter(loader)
        for batch in self._batches:
            return batch
        raise self._too_few(len(loader.sampler))

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state) if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._loader, self._batches, self._state = None, iter(()), state


class _Draws:
    """One side, drawn with replacement from what there is at each moment."""

    def __init__(self, buffer: Live, count: int, options: Mapping[str, Any]) -> None:
        self._buffer, self._count = buffer, count
        self._generator = torch.Generator().manual_seed(options["seed"])
        given = {name: value for name, value in options.items() if name != "seed"}
        self._source = RandomBatches(**given, generator=self._generator)

    def prepare(self) -> None:
        self._source.prepare(self._buffer)

    def next_batch(self) -> Batch:
        return self._source.sample(self._buffer, self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8))


class Mixture:
    """Batches of two buffers without end, what :func:`mix` returns: ``next(mixture)`` is a batch.

    Example:
        >>> batches = mix(buffer, buffer, 32, ratio=0.25, seed=0)
        >>> batch = next(batches)
        >>> batch["observation"].shape, int(batch["_online"].sum())
        (torch.Size([32, 4]), 24)
    """

    def __init__(self, sides: Mapping[str, _Side], settings: Mapping[str, Any], device: Any) -> None:
        self._sides, self._settings, self._device = dict(sides), dict(settings), check_device(device)
        counts = settings["offline"], settings["online"]
        self._is_online = torch.cat([torch.full((count,), side == 1) for side, count in enumerate(counts)])

    def __iter__(self) -> Mixture:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            EmptyBufferError: one side has no batch yet; nothing was taken from the other one.
            FieldError: the batches of the two sides do not fit one another.
        """
        for name in self._sides:
            self._prepare(name)
        online = self._sides["online"].next_batch()
        batch = Batch(_joined(self._sides["offline"].next_batch(), online))
        batch[ONLINE] = self._is_online.clone()
        return batch if self._device is None else to_device(batch, self._device)

    def _prepare(self, name: str) -> None:
        try:
            self._sides[name].prepare()
        except (EmptyBufferError, EpisodeEvictedError) as error:
            raise EmptyBufferError(f"mix: the {name} side has no batch: {error}") from None

    def state_dict(self) -> dict[str, Any]:
        """Where both sides are: from it, another mixture of the same data goes on exactly."""
        return {**self._settings, "sides": {name: side.state_dict() for name, side in self._sides.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch after the last one when the state was taken.

        Raises:
            FieldError: the state is of a mixture with other settings, or of other data.
        """
        for name, value in self._settings.items():
            if name not in state:
                raise FieldError(f"the state has no entry {name!r}; pass what state_dict() returned")
            if state[name] != value:
                raise FieldError(
                    f"the state was taken with {name}={state[name]}, this mixture has {value}; resume with the same "
                    "settings"
                )
        for name, side in self._sides.items():
            side.load_state_dict(state["sides"][name])


def mix(
    offline: Live,
    online: Live,
    batch_size: int,
    ratio: float = 0.5,
    *,
    n_steps: int = 1,
    discount: float | None = None,
    refresh: Literal["epoch", "batch"] | None = "epoch",
    include_open: bool = False,
    seed: int | None = None,
    **options: Unpack[RandomOptions],
) -> Mixture:
    """Batches of n-step transitions with an exact share of each of two buffers, without end.

    With a ratio of one half this is the symmetric sampling of RLPD (P. J. Ball, L. Smith, I. Kostrikov, S. Levine,
    "Efficient Online Reinforcement Learning with Offline Data", ICML 2023).

    Each side goes through its transitions in random order, epoch after epoch, none of them twice in an epoch; those
    that would not fill a batch are left out of the epoch. Neither side needs to have anything when this is called.

    Args:
        offline, online: a ReplayBuffer or ConcatReplayBuffer each. The first is as it was when the first batch was
            asked for; to the second one, ``refresh`` applies.
        batch_size: samples a batch, of both sides together.
        ratio: the share of ``offline``; ``ratio * batch_size`` must be a whole number.
        n_steps, discount: as of :func:`~gym_replay.n_step_loader`.
        refresh: of which moment the transitions of ``online`` are. ``"epoch"``: of the start of each of its epochs.
            ``"batch"``: of now; they are then drawn with replacement, as ``online.sample`` draws them. None: of the
            first batch.
        include_open: with ``refresh="batch"``, as of :meth:`ReplayBuffer.sample`.
        seed: of the order; None draws one from torch's default generator.
        options: the other keywords of :func:`~gym_replay.n_step_loader`, but for those of orders and workers.

    Returns:
        An iterator over dicts of tensors, with the entries that both sides have and ``_online``, bool ``(batch,)``.
        The samples of ``offline`` come first.

    Raises:
        FieldError: the ratio is not exact, or options exclude one another.

    Example:
        >>> batches = mix(expert, env.buffer, 256, n_steps=3, discount=0.99)  # doctest: +SKIP
        >>> for _ in range(1000):  # doctest: +SKIP
        ...     act(env)
        ...     train(next(batches))
    """
    for buffer in (offline, online):
        require_buffer(buffer)
    counts = _counts(batch_size, ratio)
    if refresh not in (None, "epoch", "batch"):
        raise FieldError(f"refresh={refresh!r}: expected 'epoch', 'batch' or None")
    if include_open and refresh != "batch":
        raise FieldError("include_open=True goes with refresh='batch': an epoch is of episodes that have ended")
    seed = int(torch.randint(1 << 62, ())) if seed is None else checked_integer("seed", seed, end=2**63 - 1)
    given: dict[str, Any] = {**options}
    device = given.pop("device", None)
    refuse_orders(given, "mix takes what says what a sample is")
    if (normalize := given.get("normalize")) is not None and not isinstance(normalize, Mapping):
        raise FieldError("normalize: pass statistics of one of the buffers, with which both sides are normalized")
    given |= {"n_steps": n_steps, "discount": discount}
    of_online = {**given, "seed": seed + 1}
    sides: dict[str, _Side] = {
        "offline": _Epochs("offline", offline, counts[0], {**given, "seed": seed}),
        "online": _Draws(online, counts[1], {**of_online, "include_open": include_open})
        if refresh == "batch"
        else _Epochs("online", online, counts[1], {**of_online, "refresh": refresh}),
    }
    return Mixture(sides, {"offline": counts[0], "online": counts[1], "refresh": refresh}, device)


def _counts(batch_size: int, ratio: float) -> tuple[int, int]:
    """How many samples of each side a batch has."""
    batch_size = checked_integer("batch_size", batch_size, 2)
    share = checked_number("ratio", ratio, 1) * batch_size
    offline = round(share)
    if not math.isclose(share, offline, abs_tol=1e-6) or not 0 < offline < batch_size:
        near = min(max(offline, 1), batch_size - 1)
        raise FieldError(
            f"ratio={ratio}: of {batch_size} samples that is {share:g}, and a batch has a whole number of each side; "
            f"pass ratio={near / batch_size:g}, or another batch_size"
        )
    return offline, batch_size - offline


# --- one batch of two ---


def _joined(offline: Mapping[str, Any], online: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The samples of both, those of ``offline`` first.

    Raises:
        FieldError: an entry is in one of them alone, or is of another dtype or shape.
    """
    if different := sorted(offline.keys() ^ online.keys()):
        side = "offline" if different[0] in offline else "online"
        raise FieldError(
            f"mix: the {side} side alone has the entry {within + different[0]!r}; choose what both have with "
            "current_fields=... and next_fields=..., or add the field to the other one with add_field or add_meta_field"
        )
    return {
        name: _joined_entry(f"{within}{name}", one, online[name], f"{name}_lens" in offline)
        for name, one in offline.items()
    }


def _joined_entry(name: str, one: Any, other: Any, is_ragged: bool) -> Any:
    if isinstance(one, Mapping):
        return _joined(one, other, f"{name}.")
    if isinstance(one, tuple):
        return tuple(
            _joined_entry(f"{name}.{i}", *pair, is_ragged) for i, pair in enumerate(zip(one, other, strict=True))
        )
    if isinstance(one, list):
        return [*one, *other]
    if one.dtype != other.dtype or not _fit(one.shape, other.shape, is_ragged):
        shown = [f"{str(each.dtype).removeprefix('torch.')} {tuple(each.shape[1:])}" for each in (one, other)]
        raise FieldError(
            f"mix: {name!r} is {shown[0]} on the offline side, and {shown[1]} on the online side; a batch needs one "
            "dtype and shape: pass dtype=..., or a transform that converts it"
        )
    if is_ragged and one.shape[1] != other.shape[1]:
        width = max(one.shape[1], other.shape[1])
        one, other = (_padded(each, width) for each in (one, other))
    return torch.cat((one, other))


def _fit(one: torch.Size, other: torch.Size, is_ragged: bool) -> bool:
    return one[2:] == other[2:] and len(one) == len(other) if is_ragged else one[1:] == other[1:]


def _padded(values: Tensor, width: int) -> Tensor:
    """The elements of ragged rows, padded with zeros."""
    padded = values.new_zeros((len(values), width, *values.shape[2:]))
    padded[:, : values.shape[1]] = values
    return padded
