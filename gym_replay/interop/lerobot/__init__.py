"""LeRobot datasets: exported from a buffer, and imported into one."""

from gym_replay.interop.lerobot.exporting import export_lerobot
from gym_replay.interop.lerobot.importing import import_lerobot
from gym_replay.interop.lerobot.report import ExportReport

__all__ = ["ExportReport", "export_lerobot", "import_lerobot"]
