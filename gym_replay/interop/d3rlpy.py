"""Episodes for d3rlpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.interop.transitions import ChosenEpisodes, NamesLike, Roles, only_one
from gym_replay.schema.arrays import Array

if TYPE_CHECKING:
    from gym_replay.buffer.episode import Episode
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.reading import Readable

_IMAGE_LAYOUTS = (None, "CHW", "HWC")


def to_d3rlpy(
    buffer: Readable,
    *,
    episodes: Episodes | None = None,
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
        episodes: as in :meth:`ReplayBuffer.dataloader`.
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
    episode_of = _Converter(package, buffer, Roles.find(buffer.metadata.fields, names), as_chw=image_layout == "CHW")
    made = [episode_of(episode) for episode in ChosenEpisodes(buffer, episodes)]
    if action_size is None:
        action_size = episode_of.num_actions
    if action_size is not None:
        options["action_size"] = action_size
    kind = package.ActionSpace.DISCRETE if episode_of.is_discrete else package.ActionSpace.CONTINUOUS
    return package.dataset.ReplayBuffer(package.dataset.InfiniteBuffer(), episodes=made, action_space=kind, **options)


class _Converter:
    """Makes d3rlpy's episodes.

    Attributes:
        is_discrete: whether actions are single integers.
        num_actions: how many of these there are, where a Discrete space was recorded.
    """

    def __init__(self, package: Any, buffer: Readable, roles: Roles, *, as_chw: bool) -> None:
        self._package, self._roles, self._as_chw = package, roles, as_chw
        self._fields = buffer.metadata.fields
        self._action = only_one(roles.actions, "action", "d3rlpy")
        field = self._fields[self._action]
        self.is_discrete = field.dtype.kind in "iu"
        fits = field.shape in ((), (1,)) if self.is_discrete else len(field.shape) == 1
        if field.dtype.kind not in "iuf" or not fits:
            raise FieldError(
                f"field {self._action!r}: d3rlpy takes single integers or vectors of floats as actions, got "
                f"{field.dtype.name} of shape {field.shape}"
            )
        space = (buffer.metadata.environment or {}).get("action_space")
        self.num_actions, self._first_action = None, 0
        if self.is_discrete and self._action == "action" and isinstance(space, dict) and space["type"] == "Discrete":
            self.num_actions, self._first_action = int(space["n"]), int(space.get("start", 0))

    def __call__(self, episode: Episode) -> Any:
        """One of d3rlpy's episodes."""
        length, roles = len(episode), self._roles
        observations = [self._observation(name, episode) for name in roles.observations.values()]
        actions = episode[self._action]
        if self.is_discrete:
            actions = actions.reshape(length, 1)
            actions = actions - self._first_action if self._first_action else actions
        return self._package.dataset.Episode(
            observations=observations[0] if len(observations) == 1 else observations,
            actions=actions,
            rewards=np.asarray(episode[roles.reward], np.float32).reshape(length, -1),
            terminated=roles.terminated is not None and bool(episode[roles.terminated][-1]),
        )

    def _observation(self, name: str, episode: Episode) -> Array:
        from gym_replay.schema.pictures import is_frame

        values: Array = episode[name][: len(episode)]
        if not values.shape[1:]:
            return values.reshape(-1, 1)
        return np.moveaxis(values, -1, 1) if self._as_chw and is_frame(self._fields[name]) else values
