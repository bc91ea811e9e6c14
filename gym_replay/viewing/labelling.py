"""Labels as a meta field: what was said of episodes goes into their records."""

from __future__ import annotations

from pathlib import Path

from gym_replay.buffer.door import LABEL, labels_of, read_labels, set_labels
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import FieldError


def apply_labels(folder: Path) -> int:
    """Make the labels in ``labels.json`` values of the meta field ``label``, and take them out of the file.

    The field is added where there is none. It is written first, so that an interrupt in between loses no label.

    Args:
        folder: of one buffer, which nobody else writes at the time.

    Returns:
        How many labels there were.

    Raises:
        FieldError: there is a meta field ``label`` that holds no strings, or a field of this name.
        BufferLockedError: somebody else writes to the buffer.
        CorruptBufferError: ``labels.json`` is damaged.
    """
    with ReplayBuffer.from_folder(folder) as buffer:
        uuid = buffer.metadata.uuid
        applied = read_labels(folder, uuid)
        if not applied:
            return 0
        info = buffer.metadata.meta_fields.get(LABEL)
        if info is not None and not info.is_text:
            raise FieldError(f"{folder}: meta field {LABEL!r} holds no strings; rename it, and apply the labels then")
        buffer.acquire()  # so that no episode comes between reading and writing
        buffer.refresh()
        (snapshot,) = buffer.snapshots()
        values = labels_of(snapshot).tolist()
        if info is None:
            buffer.add_meta_field(LABEL, "str", values)
        else:
            buffer.update(**{LABEL: values})
    now = read_labels(folder, uuid)
    set_labels(folder, uuid, {episode: None for episode, text in applied.items() if now.get(episode) == text})
    return len(applied)
