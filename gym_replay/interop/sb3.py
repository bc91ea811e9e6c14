"""Transitions for the replay buffers of Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.interop.transitions import Block, NamesLike, Transitions, recorded_space
from gym_replay.schema.arrays import Array, Ints
from gym_replay.schema.names import encode_siblings

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.reading import Readable

_EXTRA = "sb3"


def to_sb3(
    buffer: Readable,
    buffer_size: int | None = None,
    *,
    n_envs: int = 1,
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
        buffer_size: room, of all ``n_envs`` together; None for just these transitions. With more, an agent can go on
            recording into it.
        n_envs: how many environments the agent steps at once, which is that of its own replay buffer.
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
    if n_envs < 1:
        raise FieldError(f"n_envs={n_envs}: expected a positive number of environments")
    transitions = Transitions(buffer, names=names, episodes=episodes)
    cls = buffers.DictReplayBuffer if isinstance(observation_space, spaces.Dict) else buffers.ReplayBuffer
    room = -(-len(transitions) // n_envs) * n_envs if buffer_size is None else buffer_size
    made = cls(room, observation_space, action_space, device=device, n_envs=n_envs, **options)
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

    A replay buffer of ``n_envs`` environments has as many columns of equal length. The transitions, those with the
    smallest ``env_index`` first and else in the order of the buffer, are divided into consecutive runs, one for each
    column: where one recorder stepped ``n_envs`` environments, of which each step was a transition, these are the
    columns of the agent's own collection. Where the runs would differ in length, the shorter ones go one transition
    further, so that up to ``n_envs - 1`` are copies. Where an episode is divided, or its last transition is
    missing, the last one before is marked as a timeout: samples of one step are the same, and those of several steps
    end there.

    Args:
        replay_buffer: a ``ReplayBuffer``, ``DictReplayBuffer``, or a subclass, which is filled through its ``add``.
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        scale_actions: False stores the actions of a Box as they are, for example where they were recorded scaled.
        names, episodes: as for :func:`gym_replay.to_d4rl`.

    Returns:
        How many transitions were added, copies included.

    Raises:
        MissingExtraError: Stable-Baselines3 is not installed.
        FieldError: the fields do not fit the spaces, or there is not enough room; nothing was added then.
    """
    require("stable_baselines3.common.buffers", _EXTRA, "fill_sb3")
    transitions = Transitions(buffer, names=names, episodes=episodes)
    return _fill(replay_buffer, transitions, scale_actions=scale_actions)


def _fill(replay_buffer: Any, transitions: Transitions, *, scale_actions: bool) -> int:
    order = _in_columns(transitions, replay_buffer.n_envs)
    room = replay_buffer.buffer_size - (replay_buffer.buffer_size if replay_buffer.full else replay_buffer.pos)
    if len(order) > room:
        raise FieldError(
            f"{len(transitions)} transitions do not fit into the {room * replay_buffer.n_envs} free rows of the replay "
            "buffer; make it larger, or choose some with episodes=..."
        )
    layout = _Layout(replay_buffer, transitions)
    bounds = _bounds(replay_buffer.action_space) if scale_actions else None
    is_last = transitions.is_last[order]
    is_last[-1] = True
    is_plain = _is_plain(replay_buffer)
    for block in transitions.blocks(order):
        columns = _columns(replay_buffer, layout, block, bounds)
        if replay_buffer.handle_timeout_termination:
            is_cut = is_last[block.index].reshape(-1) & ~columns["dones"]
            columns["dones"] |= is_cut
            columns["timeouts"] |= is_cut
        if is_plain:
            _put(replay_buffer, columns)
        else:
            for row in _rows(columns, replay_buffer.n_envs):
                replay_buffer.add(*row)
    return order.size


def _in_columns(transitions: Transitions, n_envs: int) -> Ints:
    """The transitions by number, int64 ``(rows, n_envs)``: consecutive ones of an environment are in one column."""
    count = len(transitions)
    firsts = np.arange(n_envs) * count // n_envs
    order: Ints = firsts + np.arange(-(-count // n_envs))[:, None]
    if n_envs > 1 and "env_index" in transitions.source.meta_fields:
        env_indices = transitions.source.meta("env_index")[transitions.owners]
        order = np.argsort(env_indices, kind="stable")[order]
    return order


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
    low, n_envs = replay_buffer.pos, replay_buffer.n_envs
    high = low + len(columns["rewards"]) // n_envs
    for name, values in columns.items():
        if name == "timeouts" and not replay_buffer.handle_timeout_termination:
            continue
        array = getattr(replay_buffer, name)
        for key, part in values.items() if isinstance(values, dict) else ((None, values),):
            target = array if key is None else array[key]
            target[low:high] = part.reshape(high - low, n_envs, *part.shape[1:])
    replay_buffer.pos = high
    if high == replay_buffer.buffer_size:
        replay_buffer.full, replay_buffer.pos = True, 0


def _rows(columns: dict[str, Any], n_envs: int) -> Iterator[tuple[Any, ...]]:
    """The arguments of ``add``, one step of each environment."""
    for low in range(0, len(columns["rewards"]), n_envs):
        one = slice(low, low + n_envs)
        states = [
            {key: part[one] for key, part in values.items()} if isinstance(values, dict) else values[one]
            for values in (columns["observations"], columns["next_observations"])
        ]
        infos = [{"TimeLimit.truncated": is_timeout} for is_timeout in columns["timeouts"][one].tolist()]
        yield (*states, columns["actions"][one], columns["rewards"][one], columns["dones"][one], infos)
