"""What an export to a LeRobot dataset wrote, and what LeRobot does not see of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote, and what its readers do not see.

    Attributes:
        folder: the new dataset.
        num_episodes, num_frames: what is in it.
        features: by field, the key of LeRobot's feature that has its values.
        unseen: what LeRobot has no place for. It lies beside the dataset's own files, where an import finds it.
        changed: what comes back other than it was.

    Example:
        >>> print(ExportReport(Path("data/robot"), 2, 30, {"action": "action"}, ("the last observations",)))
        data/robot: 2 episodes, 30 frames
        feature: action (field action)
        not seen by LeRobot: the last observations
    """

    folder: Path
    num_episodes: int
    num_frames: int
    features: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.num_episodes} episodes, {self.num_frames} frames"]
        lines += [f"feature: {key} (field {name})" for name, key in self.features.items()]
        lines += [f"not seen by LeRobot: {each}" for each in self.unseen]
        return "\n".join(lines + [f"changed: {each}" for each in self.changed])
