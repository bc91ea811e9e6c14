"""The one place where tests reach inside the package: sizes made small, and the calls that tests watch or refuse."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gym_replay.buffer import open_episode
from gym_replay.buffer.loading import datasets, gather
from gym_replay.buffer.loading import statistics as statistics_module
from gym_replay.buffer.storage import checksums, copies, edits, layout, maps, writer
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.staging import Stage
from gym_replay.collecting.folder import open_journal
from gym_replay.files import new_folder
from gym_replay.files.lock import WriterLock
from gym_replay.interop.minari import parts as minari_parts
from gym_replay.notices import bar
from gym_replay.schema import codecs
from gym_replay.spaces import space_tree, unflatten
from gym_replay.spaces.custom import RULES
from gym_replay.spaces.node import NODES
from gym_replay.wrappers import recorded_schema
from gym_replay.wrappers.generator_state import generator_state, restore_generator

__all__ = [
    "NODES",
    "RULES",
    "ColumnWriter",
    "Counters",
    "OpenFiles",
    "Stage",
    "WriterLock",
    "bar",
    "checksums",
    "codecs",
    "copies",
    "datasets",
    "edits",
    "gather",
    "generator_state",
    "layout",
    "maps",
    "minari_parts",
    "new_folder",
    "open_episode",
    "open_journal",
    "recorded_schema",
    "restore_generator",
    "small_sizes",
    "space_tree",
    "statistics_module",
    "unflatten",
    "writer",
]

SIZES = {
    "chunk_rows": ["buffer.storage.staging.CHUNK_ROWS"],
    "ragged_chunk_rows": ["buffer.storage.staging.RAGGED_CHUNK_ROWS"],
    "growth": ["buffer.storage.columns.FIRST_CHUNK"],
    "piece": ["buffer.storage.columns.PIECE", "buffer.storage.open_files.PIECE", "buffer.storage.edits.PIECE"],
    "strings_run": ["buffer.storage.open_files.STRINGS_RUN"],
    "threaded_bytes": ["buffer.storage.encoded.THREADED_BYTES"],
    "checksum_run": ["buffer.storage.checksums.CHECKSUM_RUN"],
    "large_episode": ["buffer.storage.checksums.LARGE_EPISODE"],
    "records_at_once": ["buffer.storage.records.RECORDS_AT_ONCE"],
    "gathered_run": ["buffer.loading.datasets.RUN_BYTES"],
    "order_block": ["buffer.loading.order.BLOCK_POSITIONS"],
    "episode_rows": ["buffer.loading.selection.ROWS_AT_ONCE"],
    "statistics_bytes": ["buffer.loading.statistics.CHUNK_BYTES"],
    "quantile_bytes": ["buffer.loading.statistics.QUANTILE_BYTES"],
    "bounds_bytes": ["wrappers.bounds.RUN_BYTES"],
    "vector_staging_bytes": ["wrappers.vector.staging.STAGING_BYTES"],
    "info_fields": ["wrappers.infos._MOST_FIELDS"],
    "info_warnings": ["wrappers.infos._MOST_WARNINGS"],
    "rows_between_info_changes": ["wrappers.infos._ROWS_BETWEEN"],
    "free_info_changes": ["wrappers.infos._FREE_CHANGES"],
    "worth_a_sample": ["cli.info.WORTH_A_SAMPLE"],
    "exported_steps": ["interop.transitions._STEPS_AT_ONCE"],
    "lerobot_piece": ["interop.lerobot.exporting._BYTES_AT_ONCE"],
    "lerobot_file": ["interop.lerobot.tables._FILE_BYTES"],
}
"""For each size that tests make small, the constants of the package that say it."""


def small_sizes(patch: Any = None, **sizes: int) -> None:
    """Make sizes of the package small, so that a few rows meet what otherwise takes gigabytes.

    Args:
        patch: pytest's ``monkeypatch``, which restores the sizes; None in a process that ends with the test.
        **sizes: new values by the names in `SIZES`.
    """
    for name, value in sizes.items():
        for constant in SIZES[name]:
            module, _, attribute = f"gym_replay.{constant}".rpartition(".")
            owner = import_module(module)
            assert isinstance(getattr(owner, attribute), int), constant
            (setattr if patch is None else patch.setattr)(owner, attribute, value)
