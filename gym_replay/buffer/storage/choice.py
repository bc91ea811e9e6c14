"""A part of a schema: the fields that several buffers are read by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gym_replay.buffer.storage.layout import Metadata


@dataclass(frozen=True)
class Choice:
    """Which fields and meta fields of a buffer are shown, in this order.

    Attributes:
        fields, meta_fields: their names.
        recorder_meta: those of the meta fields that are the recorder's own.
        environment: whether the recorded environment is shown.
    """

    fields: tuple[str, ...]
    meta_fields: tuple[str, ...]
    recorder_meta: tuple[str, ...] = ()
    environment: bool = True

    def of(self, metadata: Metadata) -> Metadata:
        """The metadata with these fields only; those that a buffer has lost or never had are left out."""
        return replace(
            metadata,
            fields={name: metadata.fields[name] for name in self.fields if name in metadata.fields},
            meta_fields={name: metadata.meta_fields[name] for name in self.meta_fields if name in metadata.meta_fields},
            recorder_meta=tuple(name for name in self.recorder_meta if name in metadata.meta_fields),
            environment=metadata.environment if self.environment else None,
        )

    @classmethod
    def all_of(cls, metadata: Metadata) -> Choice:
        """The whole schema."""
        return cls(tuple(metadata.fields), tuple(metadata.meta_fields), metadata.recorder_meta)
