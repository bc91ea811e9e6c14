"""``gym-replay episodes``."""

import json

import gymnasium as gym
import pytest

from gym_replay import RecordToBuffer, ReplayBuffer
from gym_replay.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cartpole"
    with RecordToBuffer(gym.make("CartPole-v1"), folder, meta_fields={"task": "str", "success": "bool"}) as env:
        for seed in range(4):
            env.reset(seed=seed if seed else None)
            env.annotate(task=f"push {seed}", success=seed == 2)
            for _ in range(3 + seed) if seed == 3 else range(500):
                if any(env.step(seed % 2)[2:4]):
                    break
    return folder


def lines_of(capsys, *arguments):
    assert main(["episodes", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_table(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    header, *rows = lines_of(capsys, folder)
    assert header.split() == ["episode", "return", "length", "seed", "ended", "task", "success"]
    assert len(rows) == 4
    assert max(map(len, [header, *rows])) <= 80
    assert rows[0].split()[3:] == ["terminated", "push", "0", "no"]
    assert rows[3].split()[1:5] == ["6", "6", "3", "cut"]


def test_choosing_and_sorting(folder, capsys):
    def first(*arguments):
        return [line.split()[0] for line in lines_of(capsys, folder, *arguments)[1:]]

    lengths = ReplayBuffer.from_folder(folder, read_only=True).episode_lens
    assert first("-n", 2) == ["0", "1"]
    assert first("--where", "success") == ["2"]
    assert first("--episodes", "1:3") == ["1", "2"]
    longest = [str(index) for index in sorted(range(4), key=lambda index: -lengths[index])]
    assert [lengths[int(index)] for index in first("--sort=-return")] == [lengths[int(index)] for index in longest]
    assert first("--sort", "task") == ["0", "1", "2", "3"]
    header, row = lines_of(capsys, folder, "-n", 1, "--meta-fields", "episode_duration", "task")
    assert header.split() == ["episode", "length", "episode_duration", "task"]
    assert row.endswith("push 0")


def test_json(folder, capsys):
    found = json.loads("\n".join(lines_of(capsys, folder, "--json", "-n", 2)))
    assert [one["episode"] for one in found] == [0, 1]
    assert found[1]["episode_seed"] == 1
    assert found[1]["task"] == "push 1"
    assert set(found[0]) >= {"id", "length", "episode_return", "episode_rng", "success"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--meta-fields", "tsk"], "--meta-fields: unknown meta field 'tsk'; did you mean 'task'?"),
        (["--sort", "lenght"], "did you mean 'length'?"),
        (["-n", "-1"], "--number"),
    ],
)
def test_mistakes(folder, capsys, arguments, said):
    assert main(["episodes", str(folder), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_buffer_that_no_recorder_made(tmp_path, capsys):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields={"pair": ("int", 2)})
    buffer.store_episode(x=[1, 2], pair=[3, 4])
    buffer.close()
    assert [line.split() for line in lines_of(capsys, tmp_path)] == [["episode", "length", "ended"], ["0", "2"]]
    assert lines_of(capsys, tmp_path, "--meta-fields", "pair")[1].endswith("[3 4]")
