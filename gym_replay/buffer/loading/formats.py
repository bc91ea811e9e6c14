"""Batches as other training code names and lays them out: pure functions from our batch to theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gym_replay.buffer.loading.collate import Transform
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field
from gym_replay.schema.pictures import is_frame, lerobot_key

Entries: TypeAlias = dict[str, Any]

_PAD = "_is_pad"
_FLAGS = ("terminated", "truncated")


class BatchFormat:
    """A layout of batches. What it gives runs in the worker, so it is pickled.

    Attributes:
        name: of the format.
        kinds: the kinds of loading it is made for.
        needs: the fields that it has to have.
    """

    name: ClassVar[str]
    kinds: ClassVar[Sequence[str]]
    needs: ClassVar[Sequence[str]] = ()

    def options(self, options: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
        """The loader's options, with what the format needs.

        Raises:
            FieldError: the options or the fields do not go with it.
        """
        if missing := [name for name in self.needs if name not in fields]:
            raise FieldError(
                f"batch_format={self.name!r} needs the field {missing[0]!r}; the buffer has {list(fields)}"
            )
        if self.kinds == ("n_step",) and options.get("n_steps", 1) != 1:
            raise FieldError(
                f"batch_format={self.name!r} has single transitions; use n_steps=1, got {options['n_steps']}"
            )
        return dict(options)

    def after(self, transform: Transform | None, parts: Sequence[Snapshot]) -> Transform:
        """The function from a batch of these snapshots to the batch in this layout, after the user's own transform."""
        # No format expects axes of one after those of the batch.
        fields = parts[0].metadata.fields
        names = [str(name) for name in ("reward", *_FLAGS, getattr(self, "return_to_go", "")) if name in fields]
        axes = {n: len(fields[n].shape) for n in names if fields[n].shape and math.prod(fields[n].shape) == 1}
        steps = [transform, partial(_without_axes, axes=axes) if axes else None, self.bind(parts)]
        return partial(_one_by_one, steps=[step for step in steps if step is not None])

    def bind(self, parts: Sequence[Snapshot]) -> Transform:
        """The function from a batch to the batch in this layout."""
        return self.convert

    def convert(self, batch: Entries) -> Entries:
        """The batch in this layout, for formats that need not know the buffer."""
        raise NotImplementedError


Formatted: TypeAlias = BatchFormat | str


def checked_format(
    batch_format: Formatted, kind: str, options: Mapping[str, Any], fields: Mapping[str, Field]
) -> tuple[BatchFormat, dict[str, Any]]:
    """The format, and the options of a loader whose batches are in it.

    Raises:
        FieldError: there is no such format, or it does not go with the kind of loading or an option.
    """
    chosen = FORMATS[batch_format]() if isinstance(batch_format, str) and batch_format in FORMATS else batch_format
    if not isinstance(chosen, BatchFormat):
        raise FieldError(f"batch_format={batch_format!r:.60}: expected one of {sorted(FORMATS)}, or a BatchFormat")
    if kind not in chosen.kinds:
        raise FieldError(
            f"batch_format={chosen.name!r} goes with {' and '.join(chosen.kinds)} loading, not with {kind} loading"
        )
    for other in ("nested", "fieldname_map"):
        if options.get(other):
            raise FieldError(f"batch_format and {other} exclude one another: the format has names of its own")
    if options.get("only") is not None:
        raise FieldError("batch_format and to_named_tuple exclude one another: a format has names of its own")
    asked = [names for names in (options.get("fields"), options.get("current_fields")) if names is not None]
    for name, field in fields.items():
        if field.ragged and (not asked or any(name in names for names in asked)):
            raise FieldError(f"field {name!r} is ragged, which no batch_format has; leave it out with fields=[...]")
    return chosen, chosen.options(options, fields)


def _one_by_one(batch: Entries, *, steps: Sequence[Transform]) -> Entries:
    for step in steps:
        batch = step(batch)
    return batch


def _without_axes(batch: Entries, *, axes: Mapping[str, int]) -> Entries:
    return {
        name: value.reshape(value.shape[: value.ndim - axes[name]]) if name in axes else value
        for name, value in batch.items()
    }


def _below(batch: Mapping[str, Any], root: str) -> Any:
    """The entry of a part, or a dict of those below it by the rest of their names.

    Raises:
        FieldError: there is none.
    """
    if root in batch:
        return batch[root]
    lower = f"{root}."
    found = {n.removeprefix(lower): v for n, v in batch.items() if n.startswith(lower) and not n.endswith(_PAD)}
    if not found:
        raise FieldError(f"the batch has no {root!r}, which the batch_format needs; it has {list(batch)}")
    return found


def _as_unit(images: Tensor) -> Tensor:
    """Images of uint8 as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255) if images.dtype == torch.uint8 else images


def _image_names(parts: Sequence[Snapshot]) -> list[str]:
    return [name for name, field in parts[0].metadata.fields.items() if is_frame(field)]


@dataclass(frozen=True)
class LeRobotFormat(BatchFormat):
    """Batches as ``LeRobotDataset`` gives them, for window and timestep loaders.

    Keys (``lerobot/datasets/lerobot_dataset.py`` and ``utils/constants.py``, version 0.4.4): ``observation`` is
    ``observation.state``, or ``observation.image`` where it is an image; parts of a Dict space are
    ``observation.images.<part>`` where they are images, else ``observation.<part>``. ``action``;
    ``next.reward``, ``next.done`` and ``next.truncated``. ``<key>_is_pad``, bool ``(batch, time)``, is True where there
    is no row. ``episode_index``, ``frame_index``, ``index``, ``task_index`` (int64) and ``timestamp`` (float32), each
    ``(batch,)``.
    Images are float32 in [0, 1], channels first; they are the fields that ``image_layout="CHW"`` turns.

    Args:
        fps: steps in a second, for ``timestamp``; by default a step is a second.
        task: the meta field with the task: a string, which also comes as ``task``, or an integer. Without such a field
            there is one task, 0.
        keys: other keys for entries of the batch: ``{"observation.joints": "observation.state"}``.

    Raises:
        FieldError: fps is no positive number.

    Example:
        >>> from gym_replay import window_loader
        >>> chunks = {"action": range(100)}
        >>> loader = window_loader(buffer, 8, offsets=chunks, batch_format=LeRobotFormat(fps=50))  # doctest: +SKIP
        >>> loss, _ = act_policy(next(iter(loader)))  # doctest: +SKIP
    """

    fps: float = 1.0
    task: str = "task"
    keys: Mapping[str, str] | None = None
    name = "lerobot"
    kinds = ("window", "timestep")

    def __post_init__(self) -> None:
        if isinstance(self.fps, bool) or not isinstance(self.fps, (int, float)) or not 0 < self.fps < float("inf"):
            raise FieldError(f"fps={self.fps!r}: expected a positive number")

    def options(self, options: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
        return {"image_layout": "CHW", **options, "return_indices": True}

    def bind(self, parts: Sequence[Snapshot]) -> Transform:
        fields, lengths = parts[0].metadata.fields, np.concatenate([part.lengths for part in parts])
        keys = {name: lerobot_key(name, field) for name, field in fields.items()} | dict(self.keys or {})
        tasks, column = None, parts[0].metadata.meta_fields.get(self.task)
        if column is not None and column.is_text:
            texts = np.concatenate([part.meta(self.task) for part in parts])
            tasks = {text: number for number, text in enumerate(dict.fromkeys(texts.tolist()))}
        firsts = torch.from_numpy(np.cumsum(lengths) - lengths)
        return partial(self._converted, keys=keys, images=_image_names(parts), firsts=firsts, tasks=tasks)

    def _converted(
        self,
        batch: Entries,
        *,
        keys: Mapping[str, str],
        images: Sequence[str],
        firsts: Tensor,
        tasks: Mapping[str, int] | None,
    ) -> Entries:
        episode, frame = batch["_indices"].unbind(-1)
        renamed: Entries = {}
        for name, value in batch.items():
            field = name.removesuffix(_PAD)
            if name not in ("_indices", "terminated", self.task):
                key = f"{keys.get(field, field)}{name[len(field) :]}"
                renamed[key] = _as_unit(value) if name in images else value
        if "terminated" in batch and "truncated" in batch:
            renamed["next.done"] = batch["terminated"] | batch["truncated"]
        renamed |= {"episode_index": episode, "frame_index": frame, "index": firsts[episode] + frame}
        renamed["timestamp"] = (frame / self.fps).to(torch.float32)
        given = batch.get(self.task)
        if tasks is not None and given is not None:
            renamed["task"] = given
            renamed["task_index"] = torch.tensor([tasks[text] for text in given], dtype=torch.int64)
        else:
            renamed["task_index"] = torch.zeros_like(episode) if given is None else given.to(torch.int64)
        return renamed


@dataclass(frozen=True)
class DecisionTransformerFormat(BatchFormat):
    """Batches for Decision Transformer, from crops: ``crop_loader(buffer, 64, 20, batch_format=...)``.

    The keys are the arguments of ``DecisionTransformerModel.forward`` of transformers: ``states``, ``actions``,
    ``rewards`` and ``returns_to_go`` ``(batch, time, 1)``, ``timesteps`` (int64, counted from the episode's first step)
    and ``attention_mask`` (int64, 1 where there is a transition), both ``(batch, time)``. As in the authors' own
    ``get_batch`` (``gym/experiment.py`` of kzl/decision-transformer), crops begin at any step, are padded on the left,
    and padded actions of floats are -10, everything else 0.

    The return that is left at a step needs the rewards after the crop too, so it is read from a field; compute it once:
    ``buffer.add_field("return_to_go", "float64", returns_to_go(buffer))``.

    Args:
        return_to_go: the field.
        action_pad: what padded actions of floats are.

    Raises:
        FieldError: there is no such field.

    Example:
        >>> from gym_replay import crop_loader
        >>> loader = crop_loader(buffer, 64, 20, batch_format="decision_transformer", shuffle=True)  # doctest: +SKIP
        >>> action_preds = model(**next(iter(loader))).action_preds  # doctest: +SKIP
    """

    return_to_go: str = "return_to_go"
    action_pad: float = -10.0
    name = "decision_transformer"
    kinds = ("crop",)
    needs = ("observation", "action", "reward")

    def options(self, options: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
        if self.return_to_go not in fields:
            raise FieldError(
                f"batch_format='decision_transformer' needs the field {self.return_to_go!r}; add it once with "
                f"buffer.add_field({self.return_to_go!r}, 'float64', returns_to_go(buffer))"
            )
        options = super().options(options, fields)
        if options.get("burn_in"):
            raise FieldError("batch_format='decision_transformer' has no burn-in; leave burn_in out")
        own = {"pad": "left", "stride": 1, "fields": [*self.needs, self.return_to_go]}
        return {**own, **options, "return_indices": True}

    def convert(self, batch: Entries) -> Entries:
        mask, actions = batch["_mask"], batch["action"]
        before = mask.cumsum(-1) - 1
        if actions.is_floating_point():
            actions[~mask] = self.action_pad
        return {
            "states": batch["observation"],
            "actions": actions,
            "rewards": batch["reward"].unsqueeze(-1),
            "returns_to_go": batch[self.return_to_go].unsqueeze(-1),
            "timesteps": torch.where(mask, batch["_indices"][..., 1:] + before, 0),
            "attention_mask": mask.to(torch.int64),
        }


class D4RLFormat(BatchFormat):
    """Single transitions under D4RL's names, from ``n_step_loader(buffer, 256, batch_format="d4rl")``.

    ``observations``, ``actions``, ``rewards``, ``next_observations``, ``terminals`` and ``timeouts`` (bool).
    """

    name = "d4rl"
    kinds = ("n_step",)
    needs = ("reward", *_FLAGS)

    def convert(self, batch: Entries) -> Entries:
        theirs = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
        ours = ("observation", "action", "reward", "next_observation", *_FLAGS)
        return {name: _below(batch, root) for name, root in zip(theirs, ours, strict=True)}


class OGBenchFormat(BatchFormat):
    """Single transitions under OGBench's names, from ``n_step_loader(buffer, 256, batch_format="ogbench")``.

    ``observations``, ``actions``, ``next_observations``, ``rewards``, ``terminals`` (float, 1 at the last transition of
    an episode, however it ended) and ``masks`` (float, 0 where it terminated). With a ``goal_sampler`` also
    ``value_goals`` and ``actor_goals``, and then ``rewards`` and ``masks`` are those for reaching the value goal.
    """

    name = "ogbench"
    kinds = ("n_step",)
    needs = ("reward", *_FLAGS)

    def convert(self, batch: Entries) -> Entries:
        floats, relabelled = torch.get_default_dtype(), "goal_reward" in batch
        named = {
            "observations": _below(batch, "observation"),
            "actions": _below(batch, "action"),
            "next_observations": _below(batch, "next_observation"),
            "rewards": _below(batch, "goal_reward" if relabelled else "reward").to(floats),
            "terminals": (_below(batch, "terminated") | _below(batch, "truncated")).to(floats),
            "masks": (batch["goal_mask"] if relabelled else ~_below(batch, "terminated")).to(floats),
        }
        for ours, theirs in (("value_goal", "value_goals"), ("policy_goal", "actor_goals")):
            if any(f"{name}.".startswith(f"{ours}_observation.") for name in batch):
                named[theirs] = _below(batch, f"{ours}_observation")
        return named


class RobomimicFormat(BatchFormat):
    """Windows as robomimic's ``SequenceDataset`` gives them, from ``window_loader(..., batch_format="robomimic")``.

    ``obs``, a dict with an entry for each part (``observation`` where there is one only), ``actions``, ``rewards``
    and ``dones`` (floats), all ``(batch, time, ...)``, and ``pad_mask``, bool ``(batch, time, 1)``, True where the
    action is one of the episode's. Images stay uint8 with the channels last, as they are in its files. Give
    observations and actions the same ``offsets``, ``range(1 - frame_stack, seq_length)``, and ``boundary="edge"``.
    (``robomimic/utils/dataset.py``, ``get_sequence_from_demo``; without ``next_obs``.)
    """

    name = "robomimic"
    kinds = ("window",)

    def convert(self, batch: Entries) -> Entries:
        obs = _below(batch, "observation")
        named = {"obs": obs if isinstance(obs, dict) else {"observation": obs}, "actions": _below(batch, "action")}
        if "reward" in batch:
            named["rewards"] = batch["reward"]
        if all(flag in batch for flag in _FLAGS):
            named["dones"] = (batch["terminated"] | batch["truncated"]).to(torch.get_default_dtype())
        pads = [value for name, value in batch.items() if name.startswith("action") and name.endswith(_PAD)]
        if pads:
            named["pad_mask"] = ~pads[0].unsqueeze(-1)
        return named


class DiffusionPolicyFormat(BatchFormat):
    """Windows for Diffusion Policy, from ``window_loader(..., batch_format="diffusion_policy")``.

    ``obs``: the observations ``(batch, time, ...)``, a dict of them where there are several; and ``action``. There is
    no mask: what is missing at either end repeats the nearest row, which is ``boundary="edge"``, as its
    ``SequenceSampler`` does it (``diffusion_policy/common/sampler.py``). Images are float32 in [0, 1], channels first,
    as its image data sets give them. For ``n_obs_steps`` and ``horizon`` there the offsets are
    ``{"observation": range(1 - n_obs_steps, 1), "action": range(1 - n_obs_steps, horizon - n_obs_steps + 1)}``.
    """

    name = "diffusion_policy"
    kinds = ("window",)

    def options(self, options: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
        if options.get("boundary", "edge") not in ("edge", "drop", ("edge", "drop"), ("drop", "edge")):
            raise FieldError("batch_format='diffusion_policy' has no mask; use boundary='edge' or 'drop'")
        return {"image_layout": "CHW", **options}

    def bind(self, parts: Sequence[Snapshot]) -> Transform:
        return partial(_to_diffusion_policy, images=_image_names(parts))


def _to_diffusion_policy(batch: Entries, *, images: Sequence[str]) -> Entries:
    scaled = {name: _as_unit(value) if name in images else value for name, value in batch.items()}
    return {"obs": _below(scaled, "observation"), "action": _below(scaled, "action")}


_ALL = (D4RLFormat, DecisionTransformerFormat, DiffusionPolicyFormat, LeRobotFormat, OGBenchFormat, RobomimicFormat)
FORMATS: dict[str, type[BatchFormat]] = {made.name: made for made in _ALL}
