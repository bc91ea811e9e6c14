"""Reference returns: what is stored, what copies and concatenations make of it, and the scores between the two."""

import numpy as np
import pytest
from format_helpers import change_metadata, read_metadata
from hypothesis import given
from hypothesis import strategies as st

from gym_replay import (
    BufferLockedError,
    ConcatReplayBuffer,
    CorruptBufferError,
    EpisodeStateError,
    FieldError,
    ReadOnlyError,
    ReferenceReturns,
    ReplayBuffer,
    check_buffer,
    merge,
    normalized_score,
    select,
    split_into,
)

KNOWN = ReferenceReturns(random=-20.0, expert=3000.0)


def filled(folder, reference=KNOWN, rewards=((1.0, 2.0), (3.0,))):
    buffer = ReplayBuffer(folder, fields={"reward": "float64"})
    for each in rewards:
        buffer.store_episode(reward=each)
    if reference is not None:
        buffer.set_reference_returns(reference)
    return buffer


def test_what_is_set_is_there_for_everybody(tmp_path):
    with filled(tmp_path, None) as buffer:
        reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
        assert buffer.reference_returns is None
        assert "reference_returns" not in read_metadata(tmp_path)
        buffer.set_reference_returns(ReferenceReturns(np.float32(0.5), 7))
        assert buffer.reference_returns == ReferenceReturns(0.5, 7.0)
        reader.refresh()
        assert reader.reference_returns == ReferenceReturns(0.5, 7.0)
        buffer.store_episode(reward=[4.0])
        assert buffer.reference_returns == ReferenceReturns(0.5, 7.0)
        buffer.set_reference_returns(ReferenceReturns(random=1.0))
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.reference_returns == ReferenceReturns(1.0, None)
        assert [episode["reward"].tolist() for episode in buffer] == [[1.0, 2.0], [3.0], [4.0]]
        buffer.set_reference_returns(None)
        assert buffer.reference_returns is None
    assert check_buffer(tmp_path, progress=False).verified


def test_who_may_not_write_may_not_set_them(tmp_path):
    with filled(tmp_path) as buffer:
        reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
        with pytest.raises(ReadOnlyError):
            reader.set_reference_returns(None)
        with pytest.raises(ReadOnlyError):
            ConcatReplayBuffer([reader]).set_reference_returns(None)
        with pytest.raises(BufferLockedError):
            ReplayBuffer.from_folder(tmp_path).set_reference_returns(None)
        with pytest.raises(TypeError, match="ReferenceReturns"):
            buffer.set_reference_returns({"random": 1.0})
        with buffer.one_episode(), pytest.raises(EpisodeStateError, match="set_reference_returns"):
            buffer.set_reference_returns(None)
        assert buffer.reference_returns == KNOWN


@pytest.mark.parametrize("value", ["1", float("nan"), np.inf, True, [1.0], 10**400, np.array([1.0])])
def test_what_is_no_number(value):
    with pytest.raises(FieldError, match="expert: expected a finite number"):
        ReferenceReturns(expert=value)


@pytest.mark.parametrize(
    "stored", [{"random": "1"}, {"expert": True}, {"expert": 10**400}, {"other": 1.0}, [1.0, 2.0], None, {"random": {}}]
)
def test_a_strangers_metadata(tmp_path, stored):
    filled(tmp_path).close()
    change_metadata(tmp_path, reference_returns=stored)
    with pytest.raises(CorruptBufferError, match="reference"):
        ReplayBuffer.from_folder(tmp_path)


def test_copies_have_what_all_sources_agree_on(tmp_path):
    one, same = filled(tmp_path / "one"), filled(tmp_path / "same")
    other, none = filled(tmp_path / "other", ReferenceReturns(-20.0, 4000.0)), filled(tmp_path / "none", None)
    for number, (sources, expected) in enumerate([([one, same], KNOWN), ([one, other], None), ([one, none], None)]):
        with merge(sources, tmp_path / f"merged {number}", progress=False) as made:
            assert made.reference_returns == expected
        assert ConcatReplayBuffer(sources).reference_returns == expected
    with select(one, tmp_path / "selected", episodes=[0], progress=False) as made:
        assert made.reference_returns == KNOWN
    for made in split_into(one, {tmp_path / "a": 0.5, tmp_path / "b": 0.5}, progress=False):
        with made:
            assert made.reference_returns == KNOWN


def test_clearing_keeps_them_and_overwriting_does_not(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.clear()
        assert buffer.reference_returns == KNOWN
    with ReplayBuffer(tmp_path, fields={"reward": "float64"}, overwrite=True) as buffer:
        assert buffer.reference_returns is None


# --- scores ---


@given(st.floats(-1e6, 1e6), st.floats(0.001, 1e6), st.floats(-3, 3))
def test_the_two_ends_and_what_is_between(random, span, share):
    reference = ReferenceReturns(random, random + span)
    assert normalized_score(random, reference) == 0.0
    assert normalized_score(reference.expert, reference) == 100.0
    assert normalized_score(random + share * span, reference) == pytest.approx(100 * share, abs=1e-3)


def test_scores_of_arrays_and_of_a_buffer(tmp_path):
    scores = normalized_score([[-20.0, 1490.0]], KNOWN)
    assert scores.shape == (1, 2)
    assert scores.tolist() == [[0.0, 50.0]]
    assert type(normalized_score(3, KNOWN)) is float
    with filled(tmp_path) as buffer:
        assert normalized_score(3000, buffer) == buffer.normalized_score(3000) == 100.0
        assert buffer.normalized_score().tolist() == normalized_score([3.0, 3.0], KNOWN).tolist()


@pytest.mark.parametrize(
    ("reference", "what"),
    [
        (None, "the return of the random and the expert policy; .*gym-replay reference FOLDER"),
        (ReferenceReturns(random=1.0), "not known: the return of the expert policy"),
        (ReferenceReturns(5.0, 5.0), "both 5"),
    ],
)
def test_without_reference_returns_there_is_no_score(tmp_path, reference, what):
    with filled(tmp_path, reference) as buffer, pytest.raises(FieldError, match=what):
        buffer.normalized_score(1.0)
