"""Episodes for d3rlpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import EmptyBufferError, FieldError
from gym_replay.interop import require
from gym_replay.interop.transitions import Names, NamesLike, check_flags, leaves_below, only_leaf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gym_replay.buffer.reading import Readable
    from gym_replay.schema.fields import Field

_IMAGE_LAYOUTS = (None, "CHW", "HWC")


def to_d3rlpy(
    buffer: Readable,
    *,
    episodes: Sequence[int] | None = None,
    image_layout: str | None = "CHW",
    action_size: int | None = None,
    names: NamesLike | None = None,
    **options: Any,
) -> Any:
    """The episodes as a ``d3rlpy.dataset.ReplayBuffer``.

    Observations and actions are views of the files, except in circular buffers, where they are copied, and where an
    action space does not begin at 0. Rewards are copied: d3rlpy wants them as float32 ``(T, 1)``.

    d3rlpy's episodes have T observations, and the observation that follows a terminal is zeros there. It has no place
    for o_T, so it takes T - 1 transitions from an episode that did not terminate, and what was stored as o_T is not
    used. (``d3rlpy/dataset/components.py`` and ``transition_pickers.py``, version 2.8.1.)

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        episodes: indices; None for all.
        image_layout: what its pixel encoders take, ``"CHW"``; images (uint8, height, width and channels) become such
            views. None leaves them.
        action_size: number of discrete actions; None for that of the recorded action space, or else d3rlpy's own
            guess, the largest one that occurs.
        names: what the parts of a transition are called, see :func:`gym_replay.to_d4rl`. Several observations become
            d3rlpy's tuple observations, in their order.
        options: for d3rlpy's ``ReplayBuffer``: ``transition_picker``, ``trajectory_slicer``, ...

    Returns:
        A ``d3rlpy.dataset.ReplayBuffer`` over an ``InfiniteBuffer``.

    Raises:
        MissingExtraError: d3rlpy is not installed.
        FieldError: actions are neither one integer nor one vector of floats, or a part is missing.
        EmptyBufferError: there is no episode.

    Example:
        >>> dataset = to_d3rlpy(buffer)  # doctest: +SKIP
        >>> d3rlpy.algos.DiscreteCQLConfig().create().fit(dataset, n_steps=1000)  # doctest: +SKIP
    """
    package = require("d3rlpy", "d3rlpy", "to_d3rlpy")
    if image_layout not in _IMAGE_LAYOUTS:
        raise FieldError(f"image_layout={image_layout!r}: expected one of {_IMAGE_LAYOUTS}")
    parts = _Parts(buffer, Names.of(names), as_chw=image_layout == "CHW")
    chosen = range(len(buffer)) if episodes is None else episodes
    made = [parts.episode(package, buffer.episode(index)) for index in chosen]
    if not made:
        raise EmptyBufferError("there is no episode to hand over")
    if parts.is_discrete:
        kind = package.ActionSpace.DISCRETE
        action_size = parts.num_actions if action_size is None else action_size
    else:
        kind = package.ActionSpace.CONTINUOUS
    if action_size is not None:
        options["action_size"] = action_size
    return package.dataset.ReplayBuffer(package.dataset.InfiniteBuffer(), episodes=made, action_space=kind, **options)


class _Parts:
    """Which fields are what, and what is done to them."""

    def __init__(self, buffer: Readable, names: Names, *, as_chw: bool) -> None:
        schema = buffer.metadata.fields
        self._names = names
        self._circular = bool(getattr(buffer, "circular", False)) or any(
            part.circular for part in getattr(buffer, "buffers", ())
        )
        check_flags(schema, names)
        self._observations = {name: schema[name] for name in leaves_below(schema, names.observation).values()}
        self._action = only_leaf(schema, names.action, "d3rlpy")
        self._as_chw = as_chw
        field = schema[self._action]
        self.is_discrete = field.dtype.kind in "iu"
        if field.dtype.kind not in "iuf" or (
            field.shape not in ((), (1,)) if self.is_discrete else len(field.shape) != 1
        ):
            raise FieldError(
                f"field {self._action!r}: d3rlpy takes single integers or vectors of floats as actions, got "
                f"{field.dtype.name} of shape {field.shape}"
            )
        self.num_actions, self._first_action = _discrete_space(buffer, names) if self.is_discrete else (None, 0)

    def episode(self, package: Any, episode: Any) -> Any:
        """One of d3rlpy's episodes."""
        if self._circular:
            episode = episode.copy()
        length, names = len(episode), self._names
        observations = [self._observation(name, field, episode) for name, field in self._observations.items()]
        actions = episode[self._action]
        if self.is_discrete:
            actions = actions.reshape(length, 1)
            actions = actions - self._first_action if self._first_action else actions
        ended = names.terminated is not None and bool(episode[names.terminated][-1])
        return package.dataset.Episode(
            observations=observations[0] if len(observations) == 1 else observations,
            actions=actions,
            rewards=np.asarray(episode[names.reward], np.float32).reshape(length, -1),
            terminated=ended,
        )

    def _observation(self, name: str, field: Field, episode: Any) -> npt.NDArray[Any]:
        from gym_replay.buffer.loading.statistics import is_image

        values: npt.NDArray[Any] = episode[name][: len(episode)]
        if not field.shape:
            return values.reshape(-1, 1)
        return np.moveaxis(values, -1, 1) if self._as_chw and is_image(field) else values


def _discrete_space(buffer: Readable, names: Names) -> tuple[int | None, int]:
    """Of the recorded action space, how many actions there are, and the first."""
    environment = buffer.metadata.environment or {}
    space = environment.get("action_space") if names.action == "action" else None
    if not isinstance(space, dict) or space.get("type") != "Discrete":
        return None, 0
    return int(space["n"]), int(space.get("start", 0))
