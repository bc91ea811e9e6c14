"""Samples that are stretches of an episode: the whole of it, or a crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gym_replay.buffer.loading.collate import Arrays
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.plans import (
    Anchors,
    Crops,
    Ints,
    Samples,
    draw_crops,
    forward_rows,
    strided_anchors,
    trajectory_anchors,
)
from gym_replay.buffer.loading.selection import Condition
from gym_replay.buffer.loading.source import Source
from gym_replay.errors import FieldError


class StretchDataset(ReplayDataset):
    """What datasets have in common whose samples are stretches of transitions."""

    def _choose_stretches(self, fields: Sequence[str] | None, next_fields: Sequence[str] | None) -> None:
        source = self.source
        current = self._check_fields("fields", fields, list(source.fields))
        following = self._check_fields("next_fields", next_fields, ())
        if partial := [name for name in following if not source.fields[name].state]:
            raise FieldError(f"next_fields: {partial[0]!r} is no state field, so it has no row T")
        if following and not source.has_final.all():
            raise FieldError("next_fields: an episode lacks its last observation; leave such episodes out")
        entries = {name: name for name in current} | {f"next_{name}": name for name in following}
        chosen = self._choose(entries, (*(fields or ()), *(next_fields or ())))
        self._current = [name for name in current if name in chosen]
        self._next = [name for name in following if f"next_{name}" in chosen]


class TrajectoryDataset(StretchDataset):
    """One whole episode a sample, padded with zeros to the longest of its batch."""

    def __init__(
        self,
        source: Source,
        *,
        fields: Sequence[str] | None = None,
        next_fields: Sequence[str] | None = None,
        return_mask: bool = False,
        return_indices: bool = False,
        return_episode_lens: bool = True,
        slice_by_episode_len: bool = True,
        filter_fields: Mapping[str, Condition] | None = None,
        **common: Any,
    ) -> None:
        if filter_fields is not None:
            raise FieldError("filter_fields chooses steps; for whole trajectories use filter_meta")
        if not slice_by_episode_len and not return_episode_lens:
            raise FieldError("slice_by_episode_len=False pads every batch, so it needs return_episode_lens=True")
        super().__init__(source, trajectory_anchors(source.lengths), **common)
        self._return_mask, self._return_indices = return_mask, return_indices
        self._return_lens = return_episode_lens
        self._width = None if slice_by_episode_len else source.max_timesteps or int(source.lengths.max())
        self._choose_stretches(fields, next_fields)

    def _extra_names(self) -> list[str]:
        flags = {"_lens": self._return_lens, "_mask": self._return_mask, "_index": self._return_indices}
        return [name for name, present in flags.items() if present]

    def _gather(self, samples: Samples) -> Arrays:
        episodes = samples.episodes
        starts, lengths = self.source.starts[episodes], self.source.lengths[episodes]
        width = self._width or int(lengths.max())
        arrays = Arrays()
        for name in self._current:
            self._put_slices(arrays, name, name, starts, lengths, width)
        for name in self._next:
            self._put_slices(arrays, f"next_{name}", name, starts + 1, lengths, width)
        is_padded = lengths[lengths.argmin()] < width
        inside = np.arange(width) < lengths[:, None] if is_padded or self._return_mask else None
        if is_padded and inside is not None:
            arrays.were_padded((*self._current, *(f"next_{name}" for name in self._next)), inside)
        for name in self._extra_names():
            if not self._is_wanted(name):
                continue
            if name == "_lens":
                arrays[name] = lengths
            elif name == "_mask" and inside is not None:
                arrays[name] = inside
            else:
                arrays[name] = self.source.index[episodes]
        return arrays

    def _put_slices(self, arrays: Arrays, entry: str, name: str, starts: Ints, lengths: Ints, width: int) -> None:
        if self.source.fields[name].ragged:
            rows, inside = forward_rows(starts, lengths, width)
            self._put_ragged(arrays, entry, self.source.take_ragged(name, rows, inside))
        else:
            arrays[entry] = self.source.take_slices(name, starts, lengths, width)


class CropDataset(StretchDataset):
    """A stretch of random place and length a sample, drawn anew in each epoch, padded to one width.

    Args:
        source: the selected episodes.
        crop: how many transitions, or the least and the most.
        burn_in: so many transitions come before it, as far as the episode has them.
        stride: None for one crop of each episode, else one of each so many steps.
        pad: the side of the padding, ``"right"`` or ``"left"``.
        fields, next_fields: as for trajectories.
        return_indices: add ``_indices``.
    """

    def __init__(
        self,
        source: Source,
        *,
        crop: int | Sequence[int],
        burn_in: int = 0,
        stride: int | None = None,
        pad: str = "right",
        fields: Sequence[str] | None = None,
        next_fields: Sequence[str] | None = None,
        return_indices: bool = False,
        **common: Any,
    ) -> None:
        self._shortest, self._longest = _check_crop(crop)
        self._burn_in = check_count("burn_in", burn_in, 0)
        self._stride = None if stride is None else check_count("stride", stride, 1)
        if pad not in ("right", "left"):
            raise FieldError(f"pad={pad!r}: expected 'right' or 'left'")
        if self._stride != 1 and common.get("filter_fields") is not None:
            raise FieldError("filter_fields chooses steps; crops begin at chosen ones with stride=1 only")
        self._pad_left = pad == "left"
        self._return_indices = return_indices
        super().__init__(source, self._make_anchors(source.lengths), **common)
        self._choose_stretches(fields, next_fields)

    def _make_anchors(self, lengths: Ints) -> Anchors:
        if self._stride is None:
            return trajectory_anchors(lengths)
        return strided_anchors(np.zeros_like(lengths), lengths - 1, self._stride)

    def _extra_names(self) -> list[str]:
        flags = {"_mask": True, "_burn_in_mask": self._burn_in > 0, "_lens": True, "_indices": self._return_indices}
        return [name for name, present in flags.items() if present]

    def _crops(self, episodes: Ints, steps: Ints) -> Crops:
        return draw_crops(
            steps,
            self.source.lengths[episodes],
            self._draws(2, episodes, steps),
            shortest=self._shortest,
            longest=self._longest,
            burn_in=self._burn_in,
            stride=self._stride,
        )

    def _gather(self, samples: Samples) -> Arrays:
        episodes, steps = samples.episodes, samples.steps
        crops = self._crops(episodes, steps)
        places, mask, drawn = crops.rows(self._burn_in + self._longest, pad_left=self._pad_left)
        rows = self.source.starts[episodes][:, None] + places
        arrays = Arrays()
        for prefix, names, shift in (("", self._current, 0), ("next_", self._next, 1)):
            for name in names:
                self._put_masked(arrays, f"{prefix}{name}", name, rows + shift, mask)
        extra = {
            "_mask": mask,
            "_burn_in_mask": mask & ~drawn,
            "_lens": crops.counts,
            "_indices": np.stack((self.source.index[episodes], crops.first + crops.burn_in), axis=1),
        }
        arrays.update((name, extra[name]) for name in self._extra_names() if self._is_wanted(name))
        return arrays


def check_count(name: str, value: Any, lowest: int) -> int:
    """A whole number from ``lowest`` on.

    Raises:
        FieldError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value < 1 << 40:
        raise FieldError(f"{name}={value!r}: expected a whole number from {lowest} on")
    return int(value)


def _check_crop(crop: Any) -> tuple[int, int]:
    ends = (crop, crop) if isinstance(crop, (int, np.integer)) else crop
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        raise FieldError(f"crop={crop!r}: expected a number of transitions, or the least and the most: (8, 32)")
    shortest, longest = (check_count("crop", end, 1) for end in ends)
    if shortest > longest:
        raise FieldError(f"crop={crop!r}: expected the least number of transitions before the most")
    return shortest, longest
