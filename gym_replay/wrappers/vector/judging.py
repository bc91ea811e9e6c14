"""What ``on_episode`` says of the episodes of a block, before they are committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.buffer.door import MetaColumn
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.schema.fields import Field
from gym_replay.wrappers.recorded_schema import refuse_own_meta
from gym_replay.wrappers.recording import OnEpisode
from gym_replay.wrappers.vector.ended import EndedEpisodes, FinishedVectorEpisode


def judge_block(on_episode: OnEpisode, buffer: ReplayBuffer, block: EndedEpisodes) -> EndedEpisodes:
    """What is left of a block; each episode is shown once, whatever interrupts this.

    Args:
        on_episode: the user's function.
        buffer: where they go.
        block: the episodes; the meta fields that the function sets are changed in place.
    """
    if block.verdicts is None:
        block.verdicts = []
    while len(block.verdicts) < len(block):
        place = len(block.verdicts)
        keep = True
        try:
            keep = _judge(on_episode, buffer, block, place)
        except Exception as error:  # the episode is not lost to what looks at it
            block.error = block.error or error
        except BaseException:
            block.verdicts.append(True)
            raise
        block.verdicts.append(keep)
    kept = np.array(block.verdicts, bool)
    if kept.all():
        return block
    left = block.without(kept)
    left.verdicts, left.error = [True] * len(left), block.error
    return left


def _judge(on_episode: OnEpisode, buffer: ReplayBuffer, block: EndedEpisodes, place: int) -> bool:
    metadata = buffer.metadata
    shown = {
        name: _shown(metadata.meta_fields[name], value, place)
        for name, value in block.meta.items()
        if name in block.noted and block.noted[name][place]
    }
    said = on_episode(FinishedVectorEpisode(block, place, metadata.fields, shown))
    meta = said if isinstance(said, Mapping) else {}
    refuse_own_meta(meta, metadata)
    for name, encoded in buffer.encoders().meta(meta).items():
        info, values = metadata.meta_fields[name], block.meta[name]
        if isinstance(values, bytes) and not info.is_text:  # one value for all so far
            values = np.array([np.frombuffer(values, info.dtype).reshape(info.shape)] * len(block))
            block.meta[name] = values
        if isinstance(values, np.ndarray):
            values[place] = np.frombuffer(encoded, info.dtype).reshape(info.shape)
        else:
            texts = [values] * len(block) if isinstance(values, bytes) else list(values)
            texts[place] = encoded
            block.meta[name] = texts
    return not (isinstance(said, (bool, np.bool_)) and not said)


def _shown(info: Field, value: MetaColumn, place: int) -> Any:
    if info.is_text:
        return (value if isinstance(value, bytes) else value[place]).decode("utf-8", "surrogatepass")
    assert isinstance(value, np.ndarray)  # only what was set is shown
    return np.array(value[place]) if info.shape else value[place].item()
