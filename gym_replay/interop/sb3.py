"""Transitions for the replay buffers of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.interop import require
from gym_replay.interop.transitions import Block, NamesLike, Transitions, recorded_space
from gym_replay.schema.names import encode_siblings

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.reading import Readable

Array = npt.NDArray[Any]
_EXTRA = "sb3"


def to_sb3(
    buffer: Readable,
    buffer_size: int | None = None,
    *,
    observation_space: Any = None,
    action_space: Any = None,
    device: Any = "auto",
    scale_actions: bool = True,
    names: NamesLike | None = None,
    episodes: Episodes | None = None,
    **options: Any,
) -> Any:
    """A ``ReplayBuffer`` of Stable-Baselines3 (a ``DictReplayBuffer`` for Dict observations) with all transitions.

    See :func:`fill_sb3` for what is stored.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        buffer_size: room; None for just these transitions. With more, an agent can go on recording into it.
        observation_space, action_space: those of the model; None for the recorded ones. A model of images has
            ``(channels, height, width)``: pass ``model.observation_space``.
        device, options: of its replay buffer.
        scale_actions, names, episodes: as for :func:`fill_sb3`.

    Raises:
        MissingExtraError: Stable-Baselines3 is not installed.
        FieldError: the fields do not fit the spaces, or there is not enough room.

    Example:
        >>> model.replay_buffer = to_sb3(buffer)  # doctest: +SKIP
        >>> model.train(gradient_steps=1000, batch_size=256)  # doctest: +SKIP
    """
    buffers = require("stable_baselines3.common.buffers", _EXTRA, "to_sb3")
    spaces = import_module("gymnasium.spaces")
    observation_space = recorded_space(buffer, "observation") if observation_space is None else observation_space
    action_space = recorded_space(buffer, "action") if action_space is None else action_space
    transitions = Transitions(buffer, names=names, episodes=episodes)
    cls = buffers.DictReplayBuffer if isinstance(observation_space, spaces.Dict) else buffers.ReplayBuffer
    room = len(transitions) if buffer_size is None else buffer_size
    made = cls(room, observation_space, action_space, device=device, **options)
    _fill(made, transitions, scale_actions=scale_actions)
    return made


def fill_sb3(
    replay_buffer: Any,
    buffer: Readable,
    *,
    scale_actions: bool = True,
    names: NamesLike | None = None,
    episodes: Episodes | None = None,
) -> int:
    """Add all transitions to a replay buffer of Stable-Baselines3 that has room for them.

    ``dones`` is 1 where the episode ended, and ``timeouts`` 1 where that was by truncation alone, so that samples are
    bootstrapped there. (``stable_baselines3/common/buffers.py``; the info ``TimeLimit.truncated`` that it reads is
    ``truncated and not terminated``, ``common/vec_env/dummy_vec_env.py``.) Actions of a Box are scaled from its bounds
    to [-1, 1], since that is what its agents keep there (``common/off_policy_algorithm.py``, ``_sample_action``).

    Args:
        replay_buffer: a ``ReplayBuffer``, ``DictReplayBuffer``, or a subclass, which is filled through its ``add``;
            with ``n_envs=1``.
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        scale_actions: False stores the actions of a Box as they are, for example where they were recorded scaled.
        names, episodes: as for :func:`gym_replay.to_d4rl`.

    Returns:
        How many transitions were added.

    Raises:
        MissingExtraError: Stable-Baselines3 is not installed.
        FieldError: the fields do not fit the spaces, or there is not enough room; nothing was added then.
    """
    require("stable_baselines3.common.buffers", _EXTRA, "fill_sb3")
    transitions = Transitions(buffer, names=names, episodes=episodes)
    return _fill(replay_buffer, transitions, scale_actions=scale_actions)


def _fill(replay_buffer: Any, transitions: Transitions, *, scale_actions: bool) -> int:
    if replay_buffer.n_envs != 1:
        raise FieldError(f"expected a replay buffer with n_envs=1, got n_envs={replay_buffer.n_envs}; make one with 1")
    room = replay_buffer.buffer_size - (replay_buffer.buffer_size if replay_buffer.full else replay_buffer.pos)
    if len(transitions) > room:
        raise FieldError(
            f"{len(transitions)} transitions do not fit into the {room} free rows of the replay buffer; make it "
            "larger, or choose some with episodes=..."
        )
    layout = _Layout(replay_buffer, transitions)
    bounds = _bounds(replay_buffer.action_space) if scale_actions else None
    for block in transitions.blocks():
        columns = _columns(replay_buffer, layout, block, bounds)
        if _is_plain(replay_buffer):
            _put(replay_buffer, columns)
        else:
            for row in _rows(columns):
                replay_buffer.add(*row)
    return len(transitions)


def _is_plain(replay_buffer: Any) -> bool:
    """Whether its arrays are all that it has; others keep more with each step."""
    names = ("ReplayBuffer", "DictReplayBuffer", "NStepReplayBuffer")
    cls = type(replay_buffer)
    own = cls.__module__ == "stable_baselines3.common.buffers" and cls.__name__ in names
    return own and not replay_buffer.optimize_memory_usage


class _Layout:
    """How observations are laid out there: one array, or one for each key."""

    def __init__(self, replay_buffer: Any, transitions: Transitions) -> None:
        shapes, leaves = replay_buffer.obs_shape, transitions.roles.observations
        self._is_dict = isinstance(shapes, dict)
        if self._is_dict:
            self._keys = dict(zip(encode_siblings(shapes), shapes, strict=True))
            if set(self._keys) != set(leaves):
                raise FieldError(f"its observations have the keys {list(shapes)}, the buffer's {list(leaves)}")
        elif len(leaves) == 1:
            self._keys, shapes = dict.fromkeys(leaves), {None: shapes}
        else:
            raise FieldError(f"its observations are one array, the buffer's are {list(leaves.values())}")
        self._shapes = {key: tuple(shape) for key, shape in shapes.items()}
        self._channels_first = set()
        for part, key in self._keys.items():
            stored, wanted = transitions.schema[leaves[part]].shape, self._shapes[key]
            if len(stored) == 3 and (stored[-1], *stored[:-1]) == wanted != stored:
                self._channels_first.add(key)
            elif int(np.prod(stored)) != int(np.prod(wanted)):
                raise FieldError(
                    f"field {leaves[part]!r}: expected shape {wanted}, as its observation space says, got {stored}"
                )

    def __call__(self, observations: Mapping[str, Array]) -> Any:
        """``(transitions, *shape)``, or a dict of them."""
        made = {}
        for part, key in self._keys.items():
            values = observations[part]
            values = np.moveaxis(values, -1, 1) if key in self._channels_first else values
            made[key] = values.reshape(len(values), *self._shapes[key])
        return made if self._is_dict else made[None]


def _bounds(space: Any) -> tuple[Array, Array] | None:
    """The bounds of a Box, from which actions are scaled."""
    if not hasattr(space, "low"):
        return None
    low, high = space.low.reshape(-1), space.high.reshape(-1)
    if not np.isfinite(high - low).all():
        raise FieldError(
            f"the action space {space} has no bounds, so its actions cannot be scaled to [-1, 1] as agents of "
            "Stable-Baselines3 want them; scale_actions=False stores them as they are"
        )
    return low, high


def _columns(replay_buffer: Any, layout: _Layout, block: Block, bounds: tuple[Array, Array] | None) -> dict[str, Any]:
    action = np.concatenate([values.reshape(len(values), -1) for values in block.actions.values()], axis=1)
    if action.shape[1] != replay_buffer.action_dim:
        raise FieldError(f"expected actions of {replay_buffer.action_dim} numbers, got {action.shape[1]}")
    if bounds is not None:
        low, high = bounds
        action = 2.0 * (action - low) / (high - low) - 1.0
    if block.reward.ndim > 1:
        raise FieldError(f"its rewards are single numbers, the buffer's have shape {block.reward.shape[1:]}")
    return {
        "observations": layout(block.observations),
        "next_observations": layout(block.next_observations),
        "actions": action,
        "rewards": block.reward,
        "dones": block.terminated | block.truncated,
        "timeouts": block.truncated & ~block.terminated,
    }


def _put(replay_buffer: Any, columns: dict[str, Any]) -> None:
    """Set the arrays themselves: what ``add`` does, for many steps at once."""
    low, count = replay_buffer.pos, len(columns["rewards"])
    for name, values in columns.items():
        if name == "timeouts" and not replay_buffer.handle_timeout_termination:
            continue
        array = getattr(replay_buffer, name)
        if isinstance(values, dict):
            for key, part in values.items():
                array[key][low : low + count, 0] = part
        else:
            array[low : low + count, 0] = values
    replay_buffer.pos += count
    if replay_buffer.pos == replay_buffer.buffer_size:
        replay_buffer.full, replay_buffer.pos = True, 0


def _rows(columns: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The arguments of ``add``, one step of one environment each."""
    for row in range(len(columns["rewards"])):
        one = slice(row, row + 1)
        states = [
            {key: part[one] for key, part in values.items()} if isinstance(values, dict) else values[one]
            for values in (columns["observations"], columns["next_observations"])
        ]
        info = {"TimeLimit.truncated": bool(columns["timeouts"][row])}
        yield (*states, columns["actions"][one], columns["rewards"][one], columns["dones"][one], [info])
