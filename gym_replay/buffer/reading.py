"""The reading side that one buffer and a concatenation of buffers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.buffer.meta_values import MetaValues
from gym_replay.buffer.notebook import html_of_schema
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.open_rows import OpenRows
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.reference_returns import ReferenceReturns, normalized_score
from gym_replay.errors import EmptyBufferError, FieldError, GymReplayError
from gym_replay.notices import did_you_mean

if TYPE_CHECKING:
    import pandas
    import torch
    from typing_extensions import Unpack

    from gym_replay.buffer.loading.collate import Batch
    from gym_replay.buffer.loading.datasets import ReplayDataset
    from gym_replay.buffer.loading.options import AnyDatasetOptions, AnyLoaderOptions, RandomOptions
    from gym_replay.buffer.loading.prioritized import PrioritizedSampler
    from gym_replay.buffer.loading.replay_loader import ReplayLoader
    from gym_replay.buffer.loading.sampling import Samplers


class Readable:
    """Episodes by index, the loaders over them, and random batches of what there is now."""

    _samplers: Samplers | None = None

    def snapshots(self) -> list[Snapshot]:
        """The live episodes of each part, as of now (of the last ``refresh`` where another process writes)."""
        raise NotImplementedError

    def newest(self) -> list[Snapshot]:
        """The live episodes of each part, with those that other processes have committed, as after ``refresh``."""
        raise NotImplementedError

    def open_rows(self) -> OpenRows | None:
        """The rows of the episodes that this object has open; None where there is no transition."""
        return None

    @property
    def metadata(self) -> Metadata:
        """The schema and the limits, as stored."""
        raise NotImplementedError

    @property
    def num_episodes(self) -> int:
        """Live episodes."""
        return sum(len(part) for part in self.snapshots())

    @property
    def num_steps(self) -> int:
        """Transitions of all live episodes."""
        return sum(part.num_steps for part in self.snapshots())

    @property
    def episode_lens(self) -> npt.NDArray[np.int64]:
        """T of each live episode, int64 ``(num_episodes,)``, the oldest first."""
        return np.concatenate([part.lengths for part in self.snapshots()])

    @property
    def fieldnames(self) -> tuple[str, ...]:
        """The names of the fields, in their order."""
        return tuple(self.metadata.fields)

    @property
    def meta_fieldnames(self) -> tuple[str, ...]:
        """The names of the meta fields, in their order."""
        return tuple(self.metadata.meta_fields)

    @property
    def meta(self) -> MetaValues:
        """The meta fields of all live episodes, the oldest first, by name.

        Each is an array ``(num_episodes, *field.shape)``, of a string field a list of strings.

        Example:
            >>> buffer.meta["episode_return"].mean()  # doctest: +SKIP
            22.4
        """
        return MetaValues(self.snapshots())

    @property
    def reference_returns(self) -> ReferenceReturns | None:
        """The mean returns of a random and of an expert policy in the environment, where they are stored; else None."""
        return self.metadata.reference_returns

    def normalized_score(self, returns: Any = None) -> Any:
        """Returns as scores: 0 is the return of a random policy in the buffer's environment, and 100 an expert's.

        See :func:`~gym_replay.normalized_score` for the formula.

        Args:
            returns: one return, or an array of any shape; None for those of the buffer's episodes, float64
                ``(num_episodes,)``, the oldest first.

        Returns:
            A float, or float64 of the same shape.

        Raises:
            FieldError: a reference return is not stored, or the episodes have no returns of single numbers.

        Example:
            >>> buffer.normalized_score().mean()  # doctest: +SKIP
            41.7
        """
        if returns is None:
            from gym_replay.buffer.loading.selection import EpisodeValues

            returns = EpisodeValues(self.snapshots())["episode_return"]
        return normalized_score(returns, self)

    def to_pandas(self) -> pandas.DataFrame:
        """A table of the live episodes, one row each: ``id``, ``length``, and all meta fields of one number or string.

        The index is that of the episodes, as in ``buffer.episode(index)``.

        Raises:
            MissingExtraError: pandas is not installed.

        Example:
            >>> buffer.to_pandas().sort_values("episode_return").tail()  # doctest: +SKIP
        """
        return self.meta.to_pandas()

    def __len__(self) -> int:
        return self.num_episodes

    def __bool__(self) -> bool:
        return True  # a buffer without episodes is a buffer

    def episode(self, index: int) -> Episode:
        """One live episode; 0 is the oldest, -1 the newest.

        Raises:
            IndexError: there is no such episode.
        """
        parts = self.snapshots()
        total = sum(len(part) for part in parts)
        if not -total <= index < total:
            raise IndexError(f"episode {index}: there are {total} episodes")
        index %= total
        for part in parts:
            if index < len(part):
                return Episode(part, index)
            index -= len(part)
        raise AssertionError

    def __getitem__(self, index: int) -> Episode:
        if isinstance(index, (int, np.integer)):
            return self.episode(int(index))
        if isinstance(index, slice):
            shown = ":".join("" if part is None else str(part) for part in (index.start, index.stop))
            raise FieldError(
                f"buffer[{shown}]: an index gives one episode; [buffer[i] for i in range(len(buffer))[{shown}]] are "
                f"these, and episodes=slice({index.start}, {index.stop}) loads them"
            )
        what = f"buffer[{index!r:.60}]: an index gives one episode"
        if index in (*self.fieldnames, *self.meta_fieldnames):
            where = "buffer.meta[...]" if index in self.meta_fieldnames else "buffer.get_all_data()[...]"
            raise FieldError(f"{what}; {where} has a field of all episodes")
        raise FieldError(f"{what}, got {type(index).__name__}")

    def __iter__(self) -> Iterator[Episode]:
        for part in self.snapshots():
            for index in range(len(part)):
                yield Episode(part, index)

    def _repr_html_(self) -> str:
        try:
            schema = self.metadata
        except GymReplayError:  # it is closed
            schema = None
        return html_of_schema(repr(self), schema)

    def get_all_data(
        self,
        fields: Sequence[str] | None = None,
        meta_fields: Sequence[str] | None = None,
        device: Any = None,
    ) -> dict[str, Any]:
        """All episodes as one padded batch.

        Args:
            fields, meta_fields: names to take; with both None all of them and ``episode_lens``, with one None only the
                other's.
            device: where the tensors go.

        Returns:
            Each field ``(num_episodes, time, *field.shape)``, padded with zeros (state fields rows 0..T-1), each meta
            field ``(num_episodes, *field.shape)``, and where nothing was chosen ``episode_lens``, int64
            ``(num_episodes,)``, which :attr:`episode_lens` has too. A ragged field is
            ``(num_episodes, time, longest, *field.shape)`` with ``<name>_lens`` int64 ``(num_episodes, time)``, a
            string meta field a list. Empty where there is no episode.
        """
        extra = ["episode_lens"] if fields is None and meta_fields is None else []
        if extra:
            fields, meta_fields = self.fieldnames, self.meta_fieldnames
        names = [*(fields or ()), *(meta_fields or ())]
        lens = [
            f"{name}_lens" for name in fields or () if name in (schema := self.metadata.fields) and schema[name].ragged
        ]
        for argument, given, known in (
            ("fields", fields, self.fieldnames),
            ("meta_fields", meta_fields, self.meta_fieldnames),
        ):
            if unknown := [name for name in given or () if name not in known]:
                raise FieldError(f"{argument}: unknown name {unknown[0]!r}{did_you_mean(unknown[0], known)}")
        from gym_replay.buffer.loading.devices import check_device, to_device
        from gym_replay.buffer.loading.loaders import make_dataset

        try:
            dataset = make_dataset(
                self.snapshots(),
                "trajectory",
                fields=names,
                fieldname_map={"_lens": "episode_lens"},
                only=[*names, *lens, *extra],
            )
        except EmptyBufferError:
            return {}
        batch = dataset[np.arange(len(dataset))]
        return batch if device is None else to_device(batch, check_device(device))

    def dataset(
        self,
        *,
        timestep_level: bool = False,
        n_steps: int | None = None,
        **options: Unpack[AnyDatasetOptions],
    ) -> ReplayDataset:
        """A map-style dataset: an integer gives one sample, an array of sample numbers a batch.

        Takes the keywords of :meth:`dataloader` that say what a sample is.
        """
        from gym_replay.buffer.loading.loaders import make_dataset

        kind, given = _kind(timestep_level, n_steps, options)
        return make_dataset(self.snapshots(), kind, **given)

    def dataloader(
        self,
        batch_size: int,
        *,
        timestep_level: bool = False,
        n_steps: int | None = None,
        **options: Unpack[AnyLoaderOptions],
    ) -> ReplayLoader:
        """A ``torch.utils.data.DataLoader`` over the episodes that are live now, for code from another package.

        It has the name and the keywords that memmap-replay-buffer has. In code of your own, use
        :func:`~gym_replay.trajectory_loader`, :func:`~gym_replay.timestep_loader`, :func:`~gym_replay.n_step_loader`,
        :func:`~gym_replay.window_loader` or :func:`~gym_replay.crop_loader`, whose names say which samples come.

        A ragged field comes padded with zeros to the longest of its batch, ``(*lead, longest, *field.shape)``, with its
        numbers of elements as ``<entry>_lens``, int64 ``lead``; a string meta field comes as a list.

        Args:
            batch_size: samples a batch.
            timestep_level: True for single timesteps, as of :func:`~gym_replay.timestep_loader`.
            n_steps: n for n-step transitions, as of :func:`~gym_replay.n_step_loader`.
            options: the keywords of the kind of sample: ``length`` or ``offsets`` make windows, ``crop`` makes random
                crops, and none of these makes trajectories; and those of all loaders, see
                :class:`~gym_replay.buffer.loading.options.LoaderOptions`.

        Raises:
            EmptyBufferError: there is no sample.
            FieldError: a name is unknown, or an option does not fit the kind of sample.
            TypeError: there is no such option.
        """
        from gym_replay.buffer.loading.loaders import make_loader

        kind, given = _kind(timestep_level, n_steps, options)
        return make_loader(kind, {"buffer": self, "batch_size": batch_size, "options": given})

    def sample(
        self,
        n: int,
        *,
        n_steps: int = 1,
        discount: float | None = None,
        include_open: bool = False,
        sampler: PrioritizedSampler | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **options: Unpack[RandomOptions],
    ) -> Batch:
        """A batch of random transitions of all that is committed at this moment, without a loader.

        The batch has the entries that :func:`~gym_replay.n_step_loader` gives. Each transition is drawn uniformly, with
        replacement; with ``sampler``, in proportion to its priority. What is prepared for a set of options is kept for
        the next call: in a loop, pass the same functions, arrays and samplers again, not equal ones made anew.

        It sees what other processes have committed too, as :meth:`refresh` does, but for folders that are new in a
        concatenation. A call after a commit, an eviction or a deletion takes time in proportion to the number of
        episodes; any other call takes a few microseconds to see that nothing has changed.

        Args:
            n: samples.
            n_steps: how many steps each one covers, at most.
            discount: adds ``n_step_return`` and ``n_step_discount``.
            include_open: draw from the episodes that the recorder of this object, in this process, has open as well:
                from all of their transitions so far, whose next observations are known. A sample near the last one
                covers fewer steps, as at the end of an episode. Meta fields hold what was set so far. These episodes
                are held in memory once more.
            sampler: priorities. The batch has ``_samples`` and ``_weights``; a transition of an open episode has the
                largest priority so far, and -1 in ``_samples``, which ``sampler.update`` leaves out.
            seed: the first call with these options begins the sequence of this seed, the next ones go on in it.
            generator: where random numbers come from instead; by default torch's default generator.
            options: the other keywords of :func:`~gym_replay.n_step_loader`, but for those of orders and workers.

        Returns:
            A dict of tensors, ``(n, *field.shape)`` for each field.

        Raises:
            EmptyBufferError: there is no transition to draw from.
            FieldError: options exclude one another, or name what there is not.
            TypeError: there is no such option.

        Example:
            >>> batch = buffer.sample(64, n_steps=3, discount=0.99)
            >>> batch["next_observation"].shape, batch["n_step_return"].shape
            (torch.Size([64, 4]), torch.Size([64]))
        """
        if (samplers := self._samplers) is None:
            from gym_replay.buffer.loading.sampling import Samplers

            samplers = self._samplers = Samplers()
        asked = {"n_steps": n_steps, "discount": discount, "include_open": include_open, "sampler": sampler}
        return samplers.sample(self, n, {**asked, "seed": seed, "generator": generator, **options})

    def _forget_samplers(self) -> None:
        """Let go of what was prepared for :meth:`sample`."""
        self._samplers = None


def _kind(timestep_level: bool, n_steps: int | None, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    # What is left at "no" is as good as not given: callers pass whole sets of keywords through.
    options = {name: value for name, value in given.items() if value is not None}
    asked = {
        "timestep_level": timestep_level and "timestep",
        "n_steps": n_steps is not None and "n_step",
        "length": "length" in options and "window",
        "offsets": "offsets" in options and "window",
        "crop": "crop" in options and "crop",
    }
    kinds = {kind: name for name, kind in asked.items() if kind}
    if len(kinds) > 1:
        names = " and ".join(kinds.values())
        raise FieldError(
            f"{names} exclude one another: each says what a sample is; n_steps=1 gives single transitions with next"
        )
    if n_steps is not None:
        options["n_steps"] = n_steps
    return next(iter(kinds), "trajectory"), options
