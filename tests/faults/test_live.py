"""Short rounds of reading while another process writes; ``python -m tests.faults`` runs the long ones."""

import sys

import numpy as np
import pytest
from faults import children, live

from gym_replay import EpisodeEvictedError, ReplayBuffer, check_buffer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize("ring", live.RINGS)
def test_no_torn_batch_from_a_ring(ring):
    counts = live.follow_ring(3, 800, 1, **live.RINGS[ring])
    assert counts["batches"] >= 800
    assert counts["copies"] > 5, "hardly anything was copied under a writer"
    assert counts["evicted"] > 0 or "max_steps=2000" in ring, "nothing was evicted under a reader"
    assert counts["episodes"] > 100


@pytest.mark.parametrize("refresh", ["epoch", "batch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_torn_batch_from_a_loader_that_follows_a_ring(workers, refresh):
    counts = live.follow_ring_by_loader(200, 1, workers=workers, refresh=refresh, max_steps=2000)
    assert counts["batches"] >= 200
    assert counts["episodes"] > 100


@pytest.mark.parametrize(("states", "in_memory"), [(600, False), (1500, True)], ids=["disk", "memory"])
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
def test_changes_between_two_instructions_of_a_refresh(tmp_path, monkeypatch, what):
    """An update and a commit after it, when the reader has just found that no file was replaced."""
    writer = make(tmp_path / "buffer")
    buffer = ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True)
    revision = type(buffer._reader._revision)
    outdated = revision.is_outdated
    answers = [False]

    def late(self):
        if not answers:
            return outdated.fget(self)
        answer = answers.pop()
        update(writer, what)
        append(writer, 3, version=1)
        return answer

    monkeypatch.setattr(revision, "is_outdated", property(late))
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


TEXT = "of more than a page, so that a file that is cut under its map would be noticed; " * 100


@pytest.mark.parametrize("what", ["update", "delete"])
@pytest.mark.parametrize("after", ["close", "commit"])
def test_strings_go_on_to_show_their_moment(tmp_path, what, after):
    """Nothing overwrites or cuts off what an older snapshot points to."""

    def work():
        writer = ReplayBuffer(tmp_path / "buffer", fields={"x": "int"}, meta_fields={"text": "str"})
        for number in range(6):
            writer.store_episode(x=[number], text=f"{number} {TEXT}")
        held = list(ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True))
        assert held[0].meta["text"] == f"0 {TEXT}"  # the file is mapped now
        if what == "update":
            writer.update(text=[""] * 6)
        else:
            writer.delete(np.arange(6))
        if after == "close":
            writer.close()
            writer = ReplayBuffer.from_folder(tmp_path / "buffer")
        writer.store_episode(x=[6], text="new")
        for number, episode in enumerate(held):
            assert episode.meta["text"] == f"{number} {TEXT}"
        writer.close()
        for number, episode in enumerate(held):
            assert episode.copy().meta["text"] == f"{number} {TEXT}"
        with ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True) as buffer:
            assert buffer.episode(-1).meta["text"] == "new"
        assert check_buffer(tmp_path / "buffer", progress=False).verified

    children.run(work)


def test_strings_of_evicted_episodes_may_be_overwritten(tmp_path):
    options = {"circular": True, "max_steps": 8}
    writer = ReplayBuffer(tmp_path / "ring", fields={"x": "int"}, meta_fields={"text": "str"}, **options)
    for text in ("one", "another one", "", ""):
        writer.store_episode(x=[1, 1], text=text)
    held = ReplayBuffer.from_folder(tmp_path / "ring", read_only=True)
    dataset, second = held.dataset(timestep_level=True), held.episode(1)
    for _ in range(2):
        writer.store_episode(x=[1, 1], text="")
    writer.close()
    with ReplayBuffer.from_folder(tmp_path / "ring") as writer:
        writer.store_episode(x=[1, 1], text="longer than both of them")
        assert dataset[np.arange(8)]["text"] == [""] * 8
        with pytest.raises(EpisodeEvictedError):
            _ = second.meta


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
