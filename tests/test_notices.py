"""What people are told beside results: bars, on terminals and in notebooks only."""

import io
import sys

import pytest
from internals import bar

from gym_replay import ReplayBuffer, check_buffer, merge, statistics


def shown(capsys, **settings):
    with bar(3, "work", "row", delay=0, **settings) as one:
        one.update(3)
    return capsys.readouterr().err


def test_a_bar_is_shown_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "work: 100%" in shown(capsys, progress=True)
    assert shown(capsys, progress=False) == ""


def test_a_bar_is_shown_in_a_notebook(monkeypatch):
    cell = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", cell)
    with bar(3, "work", "row", progress=True, delay=0) as one:
        one.update(3)
    assert "work: 100%" in cell.getvalue()


def test_no_bar_goes_where_the_standard_error_was_redirected_to(capsys, tmp_path):
    assert shown(capsys, progress=True) == ""
    with ReplayBuffer(tmp_path / "a", fields={"action": "int64"}) as buffer:
        buffer.store_episode(action=[1, 2])
        statistics(buffer)
    check_buffer(tmp_path / "a")
    merge([tmp_path / "a"], tmp_path / "b").close()
    assert capsys.readouterr().err == ""


def test_without_a_standard_error_there_is_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    bar(3, "work", "row", progress=True).close()


def test_too_many_values_without_names(tmp_path):
    with pytest.raises(
        TypeError, match=r"merge\(sources, folder, \.\.\.\) takes 2 .*, got 3; several of a kind are one list"
    ):
        merge("a", "b", tmp_path / "out")
