"""Minari datasets: what is recorded here written as one, and one read into a buffer.

``import minari`` inside this folder is the package of that name; imports here are absolute.
"""

from gym_replay.interop.minari.exporting import export_minari
from gym_replay.interop.minari.importing import import_minari

__all__ = ["export_minari", "import_minari"]
