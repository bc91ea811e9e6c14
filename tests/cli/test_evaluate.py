"""The verbs ``evaluate`` and ``reference``."""

import json

import pytest

from gym_replay import ReferenceReturns, ReplayBuffer, collect, evaluate, merge
from gym_replay.cli import main


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_evaluate(tmp_path, capsys):
    expected = evaluate("random", "CartPole-v1", episodes=6, seed=3)
    status, out, err = run(capsys, "evaluate", "CartPole-v1", "--episodes", 6, "--seed", 3, "--num-envs", 2, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["returns"] == expected.returns.tolist()
    assert found["lengths"] == expected.lengths.tolist()
    assert (found["mean"], found["median"], found["num_episodes"]) == (expected.mean, expected.median, 6)
    assert found["interval"] == list(expected.interval())
    assert found["score"] is None
    status, out, _ = run(capsys, "evaluate", "CartPole-v1", "--episodes", 6, "--seed", 3, "--record", tmp_path / "data")
    assert status == 0
    assert f"return {expected.mean:.4g}" in out
    assert "95 % interval" in out
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert buffer.meta["episode_return"].tolist() == expected.returns.tolist()


def test_reference_and_what_follows_from_it(tmp_path, capsys):
    collect("CartPole-v1", tmp_path / "data", episodes=2, progress=False).close()
    asked = ("evaluate", "CartPole-v1", "--episodes", 4, "--reference", tmp_path / "data", "--json")
    status, _, err = run(capsys, *asked)
    assert status == 2
    assert "gym-replay reference" in err
    status, out, _ = run(capsys, "reference", tmp_path / "data", "--expert", "500", "--episodes", 5, "--json")
    assert status == 0
    random = evaluate("random", "CartPole-v1", episodes=5).mean
    assert json.loads(out) == {"folder": str(tmp_path / "data"), "random": random, "expert": 500.0}
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert buffer.reference_returns == ReferenceReturns(random, 500.0)
    _, out, _ = run(capsys, *asked)
    mean = evaluate("random", "CartPole-v1", episodes=4).mean
    assert json.loads(out)["score"] == pytest.approx(100 * (mean - random) / (500 - random))
    _, out, _ = run(capsys, *asked[:-1])
    assert "normalised score" in out
    _, out, _ = run(capsys, "info", tmp_path / "data")
    assert f"random return {random:.6g}, expert return 500" in out
    _, out, _ = run(capsys, "info", tmp_path / "data", "--json")
    assert json.loads(out)["reference_returns"] == {"random": random, "expert": 500.0}


def test_the_expert_is_a_policy_and_the_folder_has_shards(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaning.py").write_text("def lean(o):\n    return (o[..., 2] + 0.5 * o[..., 3] > 0).astype(int)\n")
    collect("CartPole-v1", "data/a", episodes=2, progress=False).close()
    merge(["data/a"], "data/b", progress=False).close()
    options = ("--expert", "leaning:lean", "--episodes", 3, "--num-envs", 2, "--quiet")
    status, out, err = run(capsys, "reference", "data", *options)
    assert status == 0, err
    assert "expert" in out
    for name in "ab":
        with ReplayBuffer.from_folder(f"data/{name}", read_only=True) as buffer:
            assert buffer.reference_returns.expert > 100
    for wrong in ("best", "nan"):
        status, _, err = run(capsys, "reference", "data", "--expert", wrong, "--random", 1)
        assert status == 2
        assert "expert" in err
    with ReplayBuffer.from_folder("data/a", read_only=True) as buffer:
        assert buffer.reference_returns.expert > 100
