"""Samples that are windows: each field at offsets of its own around a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gym_replay.buffer.loading.collate import Arrays
from gym_replay.buffer.loading.plans import (
    DROP,
    EDGE,
    ZERO,
    Boundary,
    Ints,
    Samples,
    group_windows,
    last_rows,
    window_anchors,
)
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.loading.trajectories import check_count
from gym_replay.buffer.loading.transitions import StepDataset
from gym_replay.errors import FieldError

_FARTHEST = 1 << 40


class WindowDataset(StepDataset):
    """One step a sample, with fields at offsets around it.

    Args:
        source: the selected episodes.
        length: the offsets ``0 .. length - 1`` for all fields that have none of their own.
        offsets: of single fields: ``{"observation": (-1, 0), "action": range(16)}``.
        fields: those without offsets that come along, at the step itself (or, with ``length``, in its window); None for
            all of them.
        stride: steps from one sample of an episode to the next.
        boundary: ``"edge"``, ``"zero"`` or ``"drop"``, or one for what is before the episode and one for what is after.
    """

    def __init__(
        self,
        source: Source,
        *,
        length: int | None = None,
        offsets: Mapping[str, Iterable[int]] | None = None,
        fields: Sequence[str] | None = None,
        stride: int = 1,
        boundary: str | tuple[str, str] = EDGE,
        **common: Any,
    ) -> None:
        if length is None and not offsets:
            raise FieldError("windows need length=..., or offsets={field: offsets} of at least one field")
        self._boundary = _check_boundary(boundary)
        last = {True: last_rows(source.lengths, source.has_final), False: source.lengths - 1}
        self._offsets = _check_offsets(source, offsets or {})
        named = [*self._offsets, *(name for name in fields or () if name not in self._offsets)]
        alone = [] if fields is None and length is not None else list(source.fields) if fields is None else fields
        if length is not None:
            whole = np.arange(check_count("length", length, 1), dtype=np.int64)
            following = source.fields if fields is None else [name for name in fields if name in source.fields]
            self._offsets = dict.fromkeys(following, whole) | self._offsets
            alone = []
        groups = group_windows(self._offsets, {name: last[source.fields[name].state] for name in self._offsets})
        anchors = window_anchors(
            source.lengths, [window for window, _ in groups], self._boundary, check_count("stride", stride, 1)
        )
        super().__init__(source, anchors, **common)
        self._check_fields("fields", fields, ())
        single = [name for name in alone if name in source.fields and name not in self._offsets]
        ordered = [name for name in source.fields if name in self._offsets or name in single]
        chosen = self._choose_steps({name: name for name in ordered}, named)
        pads = {name for name in self._offsets if self._is_wanted(f"{name}_is_pad")}
        # Of each window: the fields that are taken there, and the entries that are its mask.
        self._groups = [
            (window, [n for n in names if n in chosen], [f"{n}_is_pad" for n in names if n in pads])
            for window, names in groups
            if not (chosen.keys() | pads).isdisjoint(names)
        ]
        self._single = [name for name in single if name in chosen]

    def _extra_names(self) -> list[str]:
        return [*(f"{name}_is_pad" for name in self._offsets), *self._step_names()]

    def _gather(self, samples: Samples) -> Arrays:
        episodes, steps = samples.episodes, samples.steps
        starts = self.source.starts.take(episodes)
        arrays = Arrays()
        for name in self._single:
            self._put_rows(arrays, name, name, starts + steps)
        for window, names, masks in self._groups:
            places, is_pad, present = window.rows(episodes, steps, self._boundary)
            rows = starts[:, None] + places
            # Where no row is outside, each window is one copy, in half of the time.
            are_runs = window.is_run and not is_pad.any()
            for name in names:
                if are_runs and not self.source.fields[name].ragged:
                    arrays[name] = self.source.take_runs(name, rows[:, 0], len(window.offsets))
                elif present is None:
                    self._put_rows(arrays, name, name, rows)
                else:
                    self._put_masked(arrays, name, name, rows, present)
            for entry in masks:
                arrays[entry] = is_pad.copy()  # each entry has memory of its own
        self._put_steps(arrays, samples)
        return arrays


def _check_boundary(boundary: Any) -> Boundary:
    both = (boundary, boundary) if isinstance(boundary, str) else boundary
    kinds = (EDGE, ZERO, DROP)
    if not isinstance(both, (tuple, list)) or len(both) != 2 or any(one not in kinds for one in both):
        raise FieldError(f"boundary={boundary!r}: expected one of {kinds}, or two of them: (before, after)")
    return Boundary(*both)


def _check_offsets(source: Source, offsets: Any) -> dict[str, Ints]:
    if not isinstance(offsets, Mapping):
        raise FieldError(f"offsets={offsets!r}: expected a dict from field names to offsets; length=... is for all")
    checked: dict[str, Ints] = {}
    for name, given in offsets.items():
        if name not in source.fields:
            raise FieldError(f"offsets: unknown field {name!r}; there are {list(source.fields)}")
        try:
            numbers = list(given)
        except TypeError:
            raise FieldError(
                f"offsets: {name!r}: expected several offsets, got {given!r}; write ({given!r},)"
            ) from None
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or abs(number) > _FARTHEST:
                raise FieldError(f"offsets: {name!r}: expected whole numbers, got {number!r}")
        if not numbers:
            raise FieldError(f"offsets: {name!r}: expected at least one offset, got none; leave the field out")
        checked[name] = np.array(numbers, np.int64)
    return checked
