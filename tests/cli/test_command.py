"""The command as people and scripts run it: a process of its own, in a terminal, piped, and without either."""

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import sysconfig
import termios
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

import gym_replay
from gym_replay import Field, RecordToBuffer, ReplayBuffer
from gym_replay.cli import main

ROOT = Path(gym_replay.__file__).parents[1]
INSTALLED = Path(sysconfig.get_path("scripts"), "gym-replay")
COMMAND = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "gym_replay"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
del ENVIRONMENT["COLUMNS"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two shards of CartPole, a damaged buffer, and one that was made by hand."""
    folder = tmp_path_factory.mktemp("data")
    for shard in range(2):
        env = RecordToBuffer(gym.make("CartPole-v1"), folder / "shards" / f"w{shard}")
        env.action_space.seed(shard)
        for seed in range(6):
            env.reset(seed=10 * shard + seed)
            while not any(env.step(env.action_space.sample())[2:4]):
                pass
        env.close()
    fields = {"observation": Field("float32", (40,), state=True), "words": Field("uint8", ragged=True)}
    with ReplayBuffer(folder / "hand ä", fields=fields, meta_fields={"note": "str"}) as buffer:
        buffer.store_episode(observation=np.ones((4, 40)), words=[[1], [2, 3], []], note="a\x1b[2Jb")
    for name in ("damaged", "changed"):
        with gym_replay.merge([folder / "shards"], folder / name) as copy:
            if name == "changed":  # sound, but not what the environment does
                rewards = copy[3]["reward"].copy()
                rewards[2] = 7
                copy.update(3, reward=rewards)
            elif name == "damaged":
                copy.close()
                with open(folder / name / "steps" / "reward.npy", "r+b") as file:
                    file.seek(128)
                    file.write(b"\1")
    return folder


def run_process(*arguments, cwd):
    options = {"capture_output": True, "text": True, "env": ENVIRONMENT, "stdin": subprocess.DEVNULL}
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, timeout=500, **options)


def run(*arguments, cwd):
    """The command in this process, which is quicker: exit status, standard output and standard error."""
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    finally:
        os.chdir(before)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def in_terminal(*arguments, cwd, columns=80):
    """What the command writes to a terminal, and its exit status."""
    control, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [*COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdin=terminal, stdout=terminal, stderr=terminal) as child:
        os.close(terminal)
        written = b""
        while select.select([control], [], [], 100)[0]:
            try:
                piece = os.read(control, 1 << 16)
            except OSError:  # on Linux, when the other side is closed
                break
            if not piece:
                break
            written += piece
        os.close(control)
        status = child.wait(100)
    return written.decode().replace("\r\n", "\n"), status


def test_the_entry_point_is_this_function():
    assert 'gym-replay = "gym_replay.cli:main"' in (ROOT / "pyproject.toml").read_text()


# --- each verb ---


def test_info(data):
    done = run_process("info", "shards", cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 episodes" in done.stdout
    assert "CartPole-v1" in done.stdout
    assert "Discrete(2)" in done.stdout
    assert "#####" in done.stdout
    found = json.loads(run("info", "shards", "--json", cwd=data).stdout)
    both = gym_replay.ConcatReplayBuffer([data / "shards/w0", data / "shards/w1"])
    assert (found["num_episodes"], found["num_steps"], found["num_buffers"]) == (12, both.num_steps, 2)
    assert found["env_id"] == "CartPole-v1"
    assert found["bytes"] == sum(path.stat().st_size for path in (data / "shards").rglob("*") if path.is_file())
    assert [field["name"] for field in found["fields"]] == list(both.fieldnames)
    assert [field["name"] for field in found["meta_fields"]] == list(both.meta_fieldnames)
    assert found["ends"] == {"terminated": 12, "truncated": 0, "complete": 12}
    assert found["episode_length"]["max"] == both.episode_lens.max()
    assert sum(found["episode_return"]["histogram"]["counts"]) == 12
    assert [run["episodes"] for run in found["runs"]] == [6, 6]
    assert found["runs"][0]["versions"]["gymnasium"] == gym.__version__


def test_check(data):
    done = run("check", "shards", cwd=data)
    assert (done.returncode, done.stderr, done.stdout.count("no faults")) == (0, "", 2)
    done = run("check", "damaged", "--json", cwd=data)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["verified"]) == (1, False, False)
    assert [(fault["episode"], fault["field"]) for fault in found["buffers"][0]["faults"]] == [(0, "reward")]


def test_replay(data):
    done = run("replay", "shards", "--episodes", "0:2,-1", cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 episodes: 3 equal, 0 different, 0 not replayable\n"
    done = run("replay", "changed", "--json", "--where", "2 <= index <= 4", cwd=data)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["equal"], found["differs"]) == (1, False, 2, 1)
    assert [(one["index"], one["status"], one["what"], one["step"]) for one in found["episodes"]][1] == (
        3,
        "differs",
        "reward",
        2,
    )
    done = run("replay", "hand ä", cwd=data)
    assert (done.returncode, done.stdout) == (2, "")
    assert "was not made by RecordToBuffer" in done.stderr


def test_stats(data):
    arguments = ("stats", "shards", "--fields", "observation", "reward", "--where", "length > 12")
    done = run(*arguments, cwd=data)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "field",
        *(f"observation[{k}]" for k in range(4)),
        "reward",
    ]
    found = json.loads(run(*arguments, "--json", cwd=data).stdout)
    both = gym_replay.ConcatReplayBuffer([data / "shards/w0", data / "shards/w1"])
    chosen = [episode for episode in both if len(episode) > 12]
    assert found["num_episodes"] == len(chosen)
    states = np.concatenate([episode["observation"] for episode in chosen])
    np.testing.assert_allclose(found["fields"]["observation"]["mean"], states.mean(axis=0, dtype=np.float64))
    assert found["fields"]["observation"]["count"] == [len(states)] * 4


def test_head(data):
    done = run("head", "shards", "-n", "3", cwd=data)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 4)
    rows = json.loads(run("head", "shards", "--episodes=-1", "-n", "5", "--json", cwd=data).stdout)
    last = ReplayBuffer.from_folder(data / "shards/w1", read_only=True)[-1]
    assert [(row["episode"], row["t"]) for row in rows] == [(11, t) for t in range(5)]
    np.testing.assert_array_equal([row["observation"] for row in rows], last["observation"][:5])
    done = run("head", "hand ä", "--fields", "words", "observation", cwd=data)
    assert "[2 3]" in done.stdout
    assert "[1 1 1 1 1 1" in done.stdout


def test_merge_select_and_split(data, tmp_path):
    done = run("merge", data / "shards/w1", data / "shards/w0", "both", "--json", cwd=tmp_path)
    (made,) = json.loads(done.stdout)["buffers"]
    assert (made["folder"], made["num_episodes"]) == (str(tmp_path / "both"), 12)
    done = run("select", "both", "long", "--where", "episode_return >= 15 and not truncated", cwd=tmp_path)
    both, long = (ReplayBuffer.from_folder(tmp_path / name, read_only=True) for name in ("both", "long"))
    assert long.episode_lens.tolist() == [length for length in both.episode_lens.tolist() if length >= 15]
    assert done.stdout.startswith(f"{tmp_path}/long: {len(long)} episodes, {long.num_steps} steps, ")
    done = run("split", "both", "--into", "tr=ain=0.75", "val=0.25", "--seed", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 2)
    sizes = [len(ReplayBuffer.from_folder(tmp_path / name, read_only=True)) for name in ("tr=ain", "val")]
    assert sum(sizes) == 12
    assert sizes[0] > sizes[1] > 0
    done = run("select", "both", "both", "--episodes", "0", "--overwrite", cwd=tmp_path)
    assert (done.returncode, len(ReplayBuffer.from_folder(tmp_path / "both", read_only=True))) == (0, 1)
    done = run("check", ".", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["verified"]


def test_a_buffer_without_episodes(data, tmp_path):
    ReplayBuffer(tmp_path / "empty", fields={"x": "int", "reward": "float"}).close()
    done = run("info", "empty", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["episode_length"] == {"count": 0}
    for arguments in (("info",), ("check",), ("head",)):
        done = run(*arguments, "empty", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done
    done = run("stats", "empty", cwd=tmp_path)
    assert done.returncode == 2
    assert "the buffer is empty" in done.stderr
    done = run("merge", "empty", "empty", "out", cwd=tmp_path)
    assert (done.returncode, len(ReplayBuffer.from_folder(tmp_path / "out"))) == (0, 0)


# --- wrong usage and errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: VERB"),
        (("nonsense",), "there is no nonsense"),
        (("info",), "the following arguments are required: folder"),
        (("info", "nowhere"), "nowhere: there is no such folder"),
        (("select", "shards", "out", "--episodes", "1-3"), "expected indices and ranges"),
        (("select", "shards", "out", "--episodes", "99"), "there are 12 episodes"),
        (("select", "shards", "out", "--where", "length > 10000"), "no episode meets --where 'length > 10000'"),
        (("select", "shards", "changed"), "there is a buffer already"),
        (("split", "shards", "--into", "train"), "expected FOLDER=FRACTION"),
        (("split", "shards", "--into", "x=0.5", "y=0.6"), "expected a sum of 1"),
        (("merge", "damaged", "out"), "episode 0 (id 0) is damaged"),
        (("head", "shards", "--fields", "nonsense"), "unknown field 'nonsense'"),
        (("stats", "hand ä", "--fields", "words"), "field 'words' is ragged"),
    ],
)
def test_errors_are_one_line(data, arguments, message):
    done = run(*arguments, cwd=data)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (data / "out").exists()


def test_schemas_that_differ_are_listed(data):
    done = run("merge", "shards", "hand ä", "out", cwd=data)
    first, *listed, remedy = done.stderr.splitlines()
    assert (done.returncode, first) == (2, "gym-replay: error: the schemas of 3 buffers differ:")
    assert listed[0].startswith("  field 'observation': ")
    assert "'common'" in remedy
    assert not (data / "out").exists()


def test_a_wrong_condition_is_shown(data):
    done = run("select", "shards", "out", "--where", "length > 1 and lenght < 5", cwd=data)
    message, shown, caret = done.stderr.splitlines()
    assert (done.returncode, shown) == (2, "  length > 1 and lenght < 5")
    assert caret.index("^") == shown.index("lenght")
    assert "did you mean 'length'" in message


def test_debug_shows_the_traceback(data):
    done = run("info", "nowhere", "--debug", cwd=data)
    assert "Traceback" in done.stderr
    assert "BufferNotFoundError" in done.stderr


def test_what_an_environment_raises_is_one_line(data, monkeypatch, capsys):
    def failing(*arguments):
        raise RuntimeError("the simulator\nhas gone")

    monkeypatch.setattr("gymnasium.envs.classic_control.CartPoleEnv.step", failing)
    assert main(["replay", str(data / "changed")]) == 2
    assert capsys.readouterr().err == (
        "gym-replay: error: RuntimeError: the simulator has gone (--debug shows where)\n"
    )


def test_an_interrupt_is_130(data, monkeypatch, capsys):
    def interrupted(buffer):
        raise KeyboardInterrupt

    monkeypatch.setattr(ReplayBuffer, "snapshots", interrupted)
    assert main(["info", str(data / "changed")]) == 130
    assert capsys.readouterr().err == "gym-replay: interrupted\n"


# --- terminals, pipes, neither ---


@pytest.mark.parametrize("columns", [80, 50])
def test_lines_fit_the_terminal(data, columns):
    more = [("stats", "hand ä"), ("head", "shards"), ("info", "--help")] if columns == 80 else []
    for arguments in (("info", "shards"), ("head", "hand ä"), *more):
        written, status = in_terminal(*arguments, cwd=data, columns=columns)
        assert status == 0, written
        lines, _, _ = written.partition("examples:")
        assert max(map(len, lines.splitlines())) <= columns
        assert "\x1b[2J" not in written


def test_bars_are_for_terminals(data):
    written, status = in_terminal("check", "shards", cwd=data)
    assert status == 0
    assert "check: 100%" in written
    written, _ = in_terminal("check", "shards", "--json", cwd=data)
    assert json.loads(written)["ok"]


def test_verbs_have_help(data):
    whole = run("--help", cwd=data).stdout
    assert max(map(len, whole.splitlines())) <= 80
    for verb in ("record", "info", "check", "stats", "head", "replay", "merge", "select", "split", "export", "import"):
        assert f"\n    {verb} " in whole
        assert f"examples:\n  gym-replay {verb} " in run(verb, "--help", cwd=data).stdout


def test_help_is_quick(data):
    code = "import sys; from gym_replay.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'gymnasium', 'tqdm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]"


def shell(script, cwd, **environment):
    command = " ".join(f"'{part}'" for part in COMMAND)
    return subprocess.run(
        ["bash", "-c", script.replace("gym-replay", command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
    )


def test_a_reader_that_has_enough(data):
    done = shell("gym-replay head shards -n 100000 --json | head -1; echo ${PIPESTATUS[0]}", data)
    assert done.stdout.split() in (["[", "141"], ["[", "0"])  # 0 where all fits into the pipe
    assert done.stderr == ""
    done = shell("gym-replay info shards | true; gym-replay head shards | head -1", data)
    assert done.stderr == ""


def test_closed_streams(data):
    done = shell("gym-replay info shards <&-", data)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 episodes" in done.stdout
    assert shell("gym-replay check shards 2>&-", data).returncode == 0
    assert shell("gym-replay check damaged >&- 2>&-", data).returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_an_output_that_is_full(data):
    done = shell("gym-replay info shards > /dev/full", data)
    assert (done.returncode, done.stderr) == (2, "gym-replay: error: No space left on device\n")


def test_a_locale_without_the_characters(data):
    done = shell("gym-replay info 'hand ä'; gym-replay info 'nö'", data, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.stdout.startswith("hand \\xe4: 3 steps in 1 episodes")
    assert "n\\xf6: there is no such folder" in done.stderr
    done = shell("gym-replay info 'hand ä' --json", data, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert json.loads(done.stdout)["folder"] == "hand ä"


# --- the parts ---


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten episodes, of which each has its index as its only value."""
    folder = tmp_path_factory.mktemp("ten") / "data"
    with ReplayBuffer(folder, fields={"x": "int"}) as buffer:
        for index in range(10):
            buffer.store_episode(x=[index])
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", [3]), ("0,5,-1", [0, 5, 9]), ("2:5", [2, 3, 4]), (":2,8:", [0, 1, 8, 9]), ("::4", [0, 4, 8])],
)
def test_lists_of_indices(tmp_path, ten, text, expected):
    assert main(["select", str(ten), str(tmp_path / "out"), f"--episodes={text}"]) == 0
    with ReplayBuffer.from_folder(tmp_path / "out") as buffer:
        assert [int(episode["x"][0]) for episode in buffer] == expected


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([5, 5, 5], [3]),
        ([1, 2, 2, 3], [1, 2, 1]),
        (np.arange(20), [2] * 10),
        ([0.0, 1.0, 0.5], [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
        ([1.0, np.nan, np.inf], [1]),
        ([-1e308, 1e308], None),
        ([2**62, 0], None),
        ([], None),
        ([np.nan], None),
    ],
)
def test_distributions(tmp_path, capsys, values, counts):
    values = np.array(values)
    kind = values.dtype.name
    with ReplayBuffer(tmp_path, fields={"x": "int"}, meta_fields={"episode_return": kind}) as buffer:
        for value in values:
            buffer.store_episode(x=[1], episode_return=value)
    assert main(["info", str(tmp_path)]) == 0
    assert ("\nreturn  min" in capsys.readouterr().out) == bool(np.isfinite(values).any())
    assert main(["info", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["episode_return"]
    if not np.isfinite(values).any():
        assert found == {"count": 0}
        return
    edges, histogram = found["histogram"]["edges"], found["histogram"]["counts"]
    assert sum(histogram) == found["count"]
    assert len(edges) == len(histogram) + (len(histogram) > 1 or found["min"] == found["max"] or len(edges) == 2)
    assert edges[0] <= found["min"] <= found["max"]
    if counts is not None:
        assert histogram == counts


def test_what_has_no_room_beside_one_another_is_on_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = [letter * 28 for letter in "abcdefgh"]
    with ReplayBuffer(tmp_path, fields=dict.fromkeys(names, "int")) as buffer:
        buffer.store_episode(**{name: [1234567] for name in names})
    assert main(["head", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0] == "episode 0, step 0"
    assert [line.split() for line in lines[1:]] == [[name, "1234567"] for name in names]
