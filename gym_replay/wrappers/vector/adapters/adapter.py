"""What an adapter tells the vector recorder of a family of batched environments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import FieldError
from gym_replay.wrappers.episode_meta import storable_seed
from gym_replay.wrappers.recorder import values_of, wrong_result
from gym_replay.wrappers.vector.adapters.faces import face_of
from gym_replay.wrappers.vector.adapters.tensors import tensors_in
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask, declared_mode

RESET_MASK = "reset_mask"


class ResetCall(NamedTuple):
    """What a call of ``reset`` asks for.

    Attributes:
        mask: the sub-environments that it resets; None where it is all of them.
        seeds: of each sub-environment the seed that it is reset with, -1 where there is none, or none is known.
        options: what the sub-environments see of the options.
        arguments, keywords: what the inner environment is called with.
    """

    mask: Mask | None
    seeds: npt.NDArray[np.int64]
    options: Mapping[str, Any] | None
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


class Adapter:
    """A batched environment as the recorder sees it: each family of them has a subclass.

    What is here is what Gymnasium's vector environments do, as far as it can be seen from outside. A family overrides
    what it does in another way. The recorder asks :meth:`reset_call` before each reset, and what a reset or a step
    returned goes through :meth:`reset_result` or :meth:`step_result` on its way to the rows; the caller gets it as it
    was. Tensors may stay tensors there: the recorder copies them.

    Args:
        envs: the environment, wrapped or not.

    Attributes:
        envs: the environment.
        count: how many sub-environments there are.
        documented_mode: the autoreset mode of the family where the environment's metadata name none; None where it has
            to be looked for.
        is_trusted: whether the mode is right, so that the first episodes need not be looked at.
        can_be_asked: whether the sub-environments are in this process, and tell of their generators and observations.
        joins_infos: whether their infos are joined by Gymnasium, which may change their dtypes.
        honours_masks: whether a reset with a mask is known to reset only what is in it.
        without_last: what is said where a step that ends an episode also resets, and brings no last observation.
        acts_on_one: whether actions have no axis over the sub-environments, of which there is one.
        forwards: whether attributes of ``envs`` are attributes of its recorder.

    Example:
        An environment that calls its masked resets by another name:

        >>> from gym_replay.wrappers.vector import Adapter, Autoreset, register_adapter
        >>> class GridAdapter(Adapter):
        ...     documented_mode = Autoreset.DISABLED
        ...
        ...     @classmethod
        ...     def takes(cls, envs):
        ...         return hasattr(envs, "reset_cells")
        ...
        ...     def mask_of(self, arguments, keywords):
        ...         return keywords.get("cells")
        >>> register_adapter(GridAdapter)
        <class '...GridAdapter'>
    """

    documented_mode: Autoreset | None = None
    is_trusted = False
    can_be_asked: bool = False
    joins_infos: bool = False
    honours_masks: bool = False
    without_last: str = (
        "there is no infos['final_obs'] for some episodes that ended, though the autoreset mode is same-step: they are "
        "stored without their last observation"
    )
    acts_on_one: bool = False
    forwards: ClassVar[bool] = True

    @classmethod
    def takes(cls, envs: Any) -> bool:
        """Whether an environment is one of this family: what it has and is counts, not what its class is called."""
        raise NotImplementedError

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        self.count = int(attribute_of(envs, "num_envs"))

    def face(self) -> type[Any]:
        """The class whose kind the recorder is of, so that it can stand where the environment stood."""
        return face_of(self.envs, forwards=self.forwards)

    # --- what it is ---

    def mode(self) -> Autoreset | None:
        """The autoreset mode that the metadata name, or else the family's; None where neither is known."""
        return declared_mode(self.envs) or self.documented_mode

    def spec(self) -> EnvSpec | None:
        """The spec of a single sub-environment."""
        spec = attribute_of(self.envs, "spec", None)
        return spec if isinstance(spec, EnvSpec) else None

    def space(self, name: str) -> gym.Space[Any]:
        """``observation_space`` or ``action_space`` of one sub-environment.

        Some batched environments, such as SuperSuit's, call it that of all of them.
        """
        single = attribute_of(self.envs, f"single_{name}", None)
        return attribute_of(self.envs, name) if single is None else single  # type: ignore[no-any-return]

    # --- resets ---

    def reset_call(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> ResetCall:
        """What a call ``reset(*arguments, **keywords)`` asks for.

        Raises:
            FieldError: the mask or the seed is none.
        """
        mask = self.mask_of(arguments, keywords)
        given = np.ones(self.count, bool) if mask is None else mask
        options = seen = keywords.get("options")
        if isinstance(options, Mapping):
            seen = {key: value for key, value in options.items() if key != RESET_MASK}
            if mask is not None:  # which Gymnasium's vector environments take out
                keywords = {**keywords, "options": dict(options)}
        return ResetCall(mask, self.seeds(keywords.get("seed"), given), seen, arguments, keywords)

    def mask_of(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mask | None:
        """Which sub-environments a reset with these arguments resets; None where it is all of them.

        Raises:
            FieldError: ``options["reset_mask"]`` is no mask.
        """
        options = keywords.get("options")
        if not isinstance(options, Mapping) or RESET_MASK not in options:
            return None
        mask = options[RESET_MASK]
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.count,)
        if not is_mask or not mask.any():
            raise FieldError(
                f"options['reset_mask']: expected a bool array of shape ({self.count},) that is True somewhere, got "
                f"{mask!r:.80}"
            )
        return np.array(mask, bool)

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """The seed of each sub-environment that is reset: ``seed + i`` of an integer, or those of a list; else -1."""
        return self._seeds_of(seed, np.flatnonzero(mask), np.flatnonzero(mask).tolist())

    def _seeds_of(self, seed: Any, env_indices: npt.NDArray[Any], offsets: Sequence[int]) -> npt.NDArray[np.int64]:
        """Seeds of these sub-environments: an integer and the offset of each, or those of a list."""
        seeds = np.full(self.count, -1, np.int64)
        if seed is None:
            return seeds
        if isinstance(seed, (int, np.integer)):
            given = [int(seed) + offset for offset in offsets]
        else:
            try:
                given = list(seed)
            except TypeError:
                raise FieldError(f"seed: expected an integer, a list of integers, or None, got {seed!r:.80}") from None
            if len(given) == self.count:
                given = [given[env_index] for env_index in env_indices.tolist()]
            if len(given) != len(env_indices):
                return seeds  # for the environment to refuse
        seeds[env_indices] = [storable_seed(each) for each in given]
        return seeds

    def forgets_resets(self, mode: Autoreset) -> bool:
        """Whether an explicit reset leaves open if what was waiting for its reset is reset by the next step again."""
        return False

    # --- what comes back ---

    def reset_result(self, result: Any, call: ResetCall) -> tuple[Any, Any]:
        """Observations and infos of a reset, both with one value for each sub-environment.

        Those of sub-environments that were not reset count for nothing.
        """
        observations, infos = values_of("reset", result, "observations", "infos")
        return observations, infos

    def stores_late(self, observations: Any) -> bool:
        """Whether steps are stored when the next one begins: where what they return must come from a device first.

        Args:
            observations: of a reset.
        """
        return any(tensor.is_cuda for tensor in tensors_in(observations))

    def step_result(self, result: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Observations, rewards, terminations, truncations and infos of a step, as Gymnasium has them.

        Where the step also reset what had ended, the infos have the last observations as ``final_obs``, dense or as an
        array of objects, and which there are as ``_final_obs``.
        """
        try:
            observations, rewards, terminations, truncations, infos = result
        except (TypeError, ValueError):
            names = "observations", "rewards", "terminations", "truncations", "infos"
            raise wrong_result("step", result, *names) from None
        return observations, rewards, terminations, truncations, infos

    # --- what the sub-environments tell ---

    def generators(self, mask: Mask, *, create: bool) -> npt.NDArray[np.uint64] | None:
        """The generators' states of the sub-environments in a mask, zeros for others; None where none can be asked."""
        return None

    def first_observation(self, env_index: int) -> Any:
        """What the last reset of a sub-environment returned itself; None where it cannot be asked."""
        return None

    def loses_strings(self) -> bool:
        """Whether strings in observations stay those of the beginning."""
        return False

    def statistics(self) -> tuple[str, ...]:
        """Entries of the infos that a wrapper adds, and that tell of episodes that have ended."""
        return ()


def spec_of_all(specs: Sequence[EnvSpec | None]) -> EnvSpec | None:
    """The spec that is kept of sub-environments: that of the first one, with a warning where others have other ids."""
    if len(known := {None if spec is None else spec.id for spec in specs}) > 1:
        warnings.warn(
            f"the sub-environments have different specs, {sorted(map(str, known))}; the buffer keeps that of the first "
            f"one, {specs[0] and specs[0].id}",
            stacklevel=5,
        )
    return specs[0]


_NOTHING = object()


def attribute_of(envs: Any, name: str, default: Any = _NOTHING) -> Any:
    """An attribute of the outermost layer of an environment that has it.

    Raises:
        AttributeError: none has, and there is no default.
    """
    layer = envs
    while layer is not None:
        found = getattr(layer, name, _NOTHING)
        if found is not _NOTHING:
            return found
        layer = getattr(layer, "env", None)
    found = getattr(getattr(envs, "unwrapped", None), name, default)
    if found is _NOTHING:
        raise AttributeError(f"{type(envs).__name__} has no attribute {name!r}")
    return found
