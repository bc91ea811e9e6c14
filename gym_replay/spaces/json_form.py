"""Spaces as JSON, and back."""

from __future__ import annotations

from typing import Any

from gymnasium import Space

from gym_replay.errors import CorruptBufferError, GymReplayError, UnsupportedSpaceError
from gym_replay.spaces.checked_json import Json, SpaceReader, brief
from gym_replay.spaces.node import NODES, to_json


def space_to_json(space: Space[Any], root: str = "space") -> dict[str, Json]:
    """A space as JSON, from which :func:`space_from_json` makes an equal space.

    A subclass of a standard space is written as its nearest standard base, a space of one's own as the standard space
    that its values are recorded as (:func:`~gym_replay.register_space`). Float bounds keep every bit.

    Args:
        space: any standard Gymnasium space, or one that was registered.
        root: what messages call the space, such as ``"observation"``.

    Raises:
        UnsupportedSpaceError: the space or one inside it is unknown, is nested deeper than ``MAX_DEPTH``, has
            more than ``MAX_ELEMENTS`` elements, or could not be built again; the message names its type and place.

    Example:
        >>> from gymnasium import spaces
        >>> space_to_json(spaces.Discrete(2))
        {'type': 'Discrete', 'n': 2, 'start': 0, 'dtype': 'int64'}
    """
    try:
        value = to_json(space, root)
        space_from_json(value)  # what cannot be opened again must not be recorded
    except (CorruptBufferError, RecursionError) as error:
        raise UnsupportedSpaceError(f"{root}: {type(space).__name__} cannot be stored ({error})") from None
    return value


def space_from_json(value: Json) -> Space[Any]:
    """The space that :func:`space_to_json` was given.

    Nothing is allocated before its size is checked against ``MAX_ELEMENTS``.

    Raises:
        CorruptBufferError: no space has this JSON form; the message names the place.
        UnsupportedSpaceError: the installed Gymnasium is too old for this space.
    """
    kinds = {cls.__name__: node.from_json for cls, node in NODES.items() if cls is not Space}
    try:
        return SpaceReader(kinds).read(value, "space")
    except GymReplayError:
        raise
    except Exception as error:  # what Gymnasium raises for a bad argument differs from version to version
        raise CorruptBufferError(f"space: {brief(value)} is no space ({type(error).__name__}: {error})") from None
