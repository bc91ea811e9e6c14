"""The door to the storage: what rooms above the buffer may know of the files, and nothing else."""

from gym_replay.buffer.open_episode import Claim, Encoders, decoded_meta
from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.creation import check_replaceable
from gym_replay.buffer.storage.encoded import Encoded, as_stored
from gym_replay.buffer.storage.frozen import Frozen, FrozenFile, frozen
from gym_replay.buffer.storage.labels import LABEL, labels_of, read_labels, set_labels
from gym_replay.buffer.storage.layout import (
    LABELS,
    Metadata,
    metadata_from_json,
    metadata_to_json,
    read_metadata,
    step_path,
)
from gym_replay.buffer.storage.mirrored import BESIDE_BUFFERS, MirroredFolder, buffers_in
from gym_replay.buffer.storage.open_rows import OpenRows, StagedRows
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.reader import Snapshot, has_buffer, require_buffer, snapshots_of
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, MetaColumn
from gym_replay.buffer.storage.reference_returns import HasReferenceReturns, ReferenceReturns, normalized_score
from gym_replay.buffer.storage.staging import Stage
from gym_replay.buffer.storage.turns import Turns

__all__ = [
    "BESIDE_BUFFERS",
    "COMPLETE",
    "HAS_FINAL",
    "LABEL",
    "LABELS",
    "Block",
    "Claim",
    "Encoded",
    "Encoders",
    "Frozen",
    "FrozenFile",
    "HasReferenceReturns",
    "MetaColumn",
    "Metadata",
    "MirroredFolder",
    "OpenRows",
    "Ragged",
    "ReferenceReturns",
    "Snapshot",
    "Stage",
    "StagedRows",
    "Turns",
    "as_stored",
    "buffers_in",
    "check_replaceable",
    "decoded_meta",
    "frozen",
    "has_buffer",
    "labels_of",
    "metadata_from_json",
    "metadata_to_json",
    "normalized_score",
    "read_labels",
    "read_metadata",
    "require_buffer",
    "set_labels",
    "snapshots_of",
    "step_path",
]
