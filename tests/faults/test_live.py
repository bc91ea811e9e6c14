"""Short rounds of reading while another process writes; ``python -m tests.faults`` runs the long ones."""

import sys

import numpy as np
import pytest
from faults import live

from gym_replay import EpisodeEvictedError, ReplayBuffer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize("ring", live.RINGS)
def test_no_torn_batch_from_a_ring(ring):
    counts = live.follow_ring(3, 1200, 1, **live.RINGS[ring])
    assert counts["batches"] >= 1200
    assert counts["copies"] > 50
    assert counts["evicted"] > 0 or ring == "max_steps=2000", "nothing was evicted under a reader"
    assert counts["episodes"] > 200


@pytest.mark.parametrize(("states", "in_memory"), [(1000, False), (2500, True)], ids=["disk", "memory"])
def test_changes_are_seen_whole(states, in_memory):
    counts = live.follow_changes(3, states, 1, parent=live.memory() if in_memory else None)
    assert counts["states"] >= states
    assert min(counts["updates"], counts["cleared"], counts["reopened"]) > 0


def make(folder, **options):
    buffer = ReplayBuffer(folder, fields={**live.FIELDS, "label": "int64"}, meta_fields=live.META, **options)
    for number in range(3):
        append(buffer, number)
    return buffer


def append(buffer, number, version=0, **more):
    label = np.full(live.length_of(number), version)
    live.store(buffer, number, version=version, label=label, **more)


def update(buffer, what):
    if what == "meta":
        buffer.update(version=np.ones(len(buffer), int))
    else:
        buffer.update(label=[np.ones(length, int) for length in buffer.episode_lens])


@pytest.mark.parametrize("what", ["rows", "meta"])
def test_changes_between_two_instructions_of_a_refresh(tmp_path, what):
    """An update and a commit after it, when the reader has just found that no file was replaced."""
    writer = make(tmp_path / "buffer")
    buffer = ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True)
    reader = buffer._reader
    take = reader.snapshot

    def late():
        reader.snapshot = take
        update(writer, what)
        append(writer, 3, version=1)
        return take()

    reader.snapshot = late
    buffer.refresh()
    for episode in buffer:
        live.verify_copy(episode)
    if len(buffer) == 4:
        assert buffer.episode(-1)["label"].tolist() == [1] * len(buffer.episode(-1))
    buffer.refresh()
    assert len(buffer) == 4
    for episode in buffer:
        live.verify_copy(episode)


@pytest.mark.parametrize("what", ["rows", "meta", "field", "clear"])
def test_an_episode_goes_on_to_show_its_moment(tmp_path, what):
    writer = make(tmp_path / "buffer")
    buffer = ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True)
    held = [*buffer, *writer]
    if what == "field":
        writer.add_field("extra", "int64")
    elif what == "clear":
        writer.clear()
        append(writer, 3)
    else:
        update(writer, what)
    buffer.refresh()
    for episode in held:
        assert list(episode) == [*live.FIELDS, "label"]
        assert "extra" not in episode
        copied = episode.copy()
        live.verify_copy(copied)
        assert set(copied["label"].tolist()) == {0}
        assert copied.meta["version"] == 0
    assert all(("extra" in episode) == (what == "field") for episode in buffer)


def test_evicted_copies_say_so(tmp_path):
    writer = make(tmp_path / "ring", circular=True, max_episodes=3)
    buffer = ReplayBuffer.from_folder(tmp_path / "ring", read_only=True)
    held = list(buffer)
    dataset = buffer.dataset(n_steps=live.N, sequence_fields=("action",), dtype="stored")
    append(writer, 3)
    with pytest.raises(EpisodeEvictedError):
        held[0].copy()
    live.verify_copy(held[1].copy())
    live.verify_batch(dataset[np.arange(len(dataset))])  # live ones in the place of those that left
    for number in range(4, 9):
        append(writer, number)
    with pytest.raises(EpisodeEvictedError):
        dataset[np.arange(len(dataset))]
    with pytest.raises(EpisodeEvictedError):
        _ = held[2].meta
    buffer.refresh()
    for episode in buffer:
        live.verify_copy(episode.copy())
