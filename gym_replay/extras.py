"""Optional packages: imported where they are needed, and where one is missing the error names the pip command."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gym_replay.errors import MissingExtraError


def require(module: str, extra: str, what: str) -> Any:
    """A module of an optional package.

    Args:
        module: its full name.
        extra: the extra of this package that installs it.
        what: what needs it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but lacks one of its own is another fault, which keeps its own message.
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f"{what} needs {package}, which is not installed: pip install 'gym-replay[{extra}]'"
        ) from None
