"""What people get wrong, and the sentence that each of them is told: what came, what was expected, what to do.

``python -m tests.test_mistakes`` prints all of them.
"""

import contextlib
import io
import os
import re
import tempfile
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    ConcatReplayBuffer,
    ConfigMismatchError,
    FieldError,
    RecordToBuffer,
    ReplayBuffer,
    StorageError,
    collect,
    replay,
    select,
    split,
    statistics,
    timestep_loader,
    window_loader,
)
from gym_replay.cli import main


def recorded(folder, env="CartPole-v1", **options):
    with RecordToBuffer(gym.make(env), folder / "cartpole", **options) as env:
        env.reset(seed=0)
        env.step(0)
    return ReplayBuffer.from_folder(folder / "cartpole")


def nested(folder):
    env = gym.wrappers.TimeAwareObservation(gym.make("CartPole-v1"), flatten=False)
    return collect(lambda: env, folder / "nested", episodes=1, progress=False)


class Still:
    def reset(self, mask, seeds):
        """It has no memory."""

    def __call__(self, observation):
        return 0


def by_hand(folder, **options):
    fields = {"observation": ("float", 3), "action": "int"}
    buffer = ReplayBuffer(folder / "hand", fields=fields, meta_fields={"task": "str"}, **options)
    buffer.store_episode(observation=np.zeros((2, 3)), action=[0, 1], task="reach")
    return buffer


def below(folder):
    by_hand(folder).close()
    return ReplayBuffer.from_folder(folder)


def twice(folder):
    buffer = by_hand(folder)
    found = []

    def write():
        try:
            ReplayBuffer.from_folder(folder / "hand").store_episode(action=[1])
        except BufferLockedError as error:
            found.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    buffer.close()
    raise found[0]


def unwritable(folder):
    (folder / "file").write_text("")
    ReplayBuffer(folder / "file" / "data", fields={"x": "int"})


def no_right(folder):
    (folder / "locked").mkdir(mode=0o500)
    if os.access(folder / "locked", os.W_OK):
        raise StorageError(13, "give this user the right to write there", "data")  # root may write anywhere
    ReplayBuffer(folder / "locked" / "data", fields={"x": "int"})


def another_environment(folder):
    recorded(folder).close()
    RecordToBuffer(gym.make("Acrobot-v1"), folder / "cartpole")


IN_PYTHON = {
    "an option": (
        lambda f: timestep_loader(by_hand(f), 2, shufle=True),
        TypeError,
        "unexpected keyword 'shufle' .*; did you mean 'shuffle'?",
    ),
    "an option of the recorder": (
        lambda f: recorded(f, meta_field={}),
        TypeError,
        "'meta_field'; did you mean 'meta_fields'?",
    ),
    "a field of a loader": (
        lambda f: timestep_loader(by_hand(f), 2, fields=("obsevation",)),
        FieldError,
        "fields: unknown field 'obsevation'; did you mean 'observation'?",
    ),
    "a field in another case": (
        lambda f: timestep_loader(by_hand(f), 2, fields=("Action",)),
        FieldError,
        "'Action'; did you mean 'action'?",
    ),
    "a field of a window": (
        lambda f: window_loader(by_hand(f), 2, offsets={"acton": (0, 1)}),
        FieldError,
        "offsets: unknown field 'acton'; did you mean 'action'?",
    ),
    "a field of an episode": (lambda f: by_hand(f).episode(0)["obs"], FieldError, "unknown field 'obs'; "),
    "a meta field of an episode": (
        lambda f: by_hand(f).episode(0)["task"],
        FieldError,
        "it is a meta field: episode.meta has it",
    ),
    "a field to store": (
        lambda f: by_hand(f).store_episode(actoin=[1]),
        FieldError,
        "'actoin'; did you mean 'action'?",
    ),
    "a field to update": (lambda f: by_hand(f).update(0, acton=[1, 2]), FieldError, "'acton'; did you mean 'action'?"),
    "a meta field to filter": (
        lambda f: timestep_loader(by_hand(f), 2, filter_meta={"tsk": "reach"}),
        FieldError,
        "filter_meta: unknown meta field 'tsk'; did you mean 'task'?",
    ),
    "a field to filter": (
        lambda f: timestep_loader(by_hand(f), 2, filter_fields={"acton": 1}),
        FieldError,
        "filter_fields: .*'acton'.*did you mean 'action'?",
    ),
    "a name in a condition": (
        lambda f: select(by_hand(f), f / "x", where="lenght > 3"),
        FieldError,
        "unknown name 'lenght'; did you mean 'length'?",
    ),
    "a name in a map": (
        lambda f: timestep_loader(by_hand(f), 2, fieldname_map={"acton": "a"}),
        FieldError,
        "'acton'; did you mean 'action'?",
    ),
    "a name to normalize": (
        lambda f: timestep_loader(by_hand(f), 2, normalize=("observatio",)),
        FieldError,
        "'observatio'; did you mean 'observation'?",
    ),
    "a name of statistics": (
        lambda f: statistics(by_hand(f), ["observatoin"], progress=False),
        FieldError,
        "did you mean 'observation'?",
    ),
    "a name in common": (
        lambda f: ConcatReplayBuffer([by_hand(f)], fields=["acton"]),
        FieldError,
        "no buffer has 'acton'; did you mean 'action'?",
    ),
    "a name of everything": (
        lambda f: by_hand(f).get_all_data(fields=("acton",)),
        FieldError,
        "'acton'; did you mean 'action'?",
    ),
    "an environment that nobody imported": (
        lambda f: collect("Elsewhere/Pong-v5", f / "x", episodes=1),
        FieldError,
        "put the module that registers it before the id, as in 'ale_py:ALE/Pong-v5'",
    ),
    "a policy's class": (
        lambda f: collect("CartPole-v1", f / "x", policy=Still, episodes=1),
        FieldError,
        r"policy: expected an object, got the class Still; pass Still\(\)",
    ),
    "a policy that takes tensors": (
        lambda f: collect("CartPole-v1", f / "x", policy=torch.nn.Linear(4, 1), episodes=1),
        FieldError,
        "Linear is called with arrays, and raised TypeError: .*; pass a function that calls it with torch.as_tensor",
    ),
    "a function that makes what is to be passed": (
        lambda f: replay(collect("CartPole-v1", f / "x", episodes=1), 0, env=lambda: gym.make("CartPole-v1")),
        TypeError,
        "env: expected a gymnasium.Env, got function; call it",
    ),
    "the last part of a field": (
        lambda f: timestep_loader(nested(f), 2, fields=("time",)),
        FieldError,
        "unknown field 'time'; did you mean 'observation.time'?",
    ),
    "an annotation": (lambda f: _annotated(f, tsk="x"), FieldError, "unknown meta field 'tsk'; did you mean 'task'?"),
    "an annotation that was not declared": (
        lambda f: _annotated(f, score=1.0),
        FieldError,
        r"'score'; there are \['task'\]; meta_fields=... of the recorder declares one",
    ),
    "a value of a step": (lambda f: _annotated_step(f, log_prb=1.0), FieldError, "'log_prb'; did you mean 'log_prob'?"),
    "a list of meta fields": (
        lambda f: recorded(f, meta_fields=["task"]),
        FieldError,
        r"meta fields: expected a dict of names and dtypes, such as {'task': 'float'}, got list \['task'\]",
    ),
    "a list of fields": (
        lambda f: ReplayBuffer(f / "x", fields=["state", "action"]),
        FieldError,
        "expected a dict of names and dtypes, such as {'state': 'float', 'action': 'float'}",
    ),
    "a dtype of strings": (
        lambda f: recorded(f, meta_fields={"task": "string"}),
        FieldError,
        "meta field 'task': dtype 'string' \\(did you mean 'str'?\\): .*for meta fields str",
    ),
    "a dtype": (
        lambda f: ReplayBuffer(f / "x", fields={"x": "flaot32"}),
        FieldError,
        "field 'x': dtype 'flaot32' \\(did you mean 'float32'?\\)",
    ),
    "an argument of a field": (
        lambda f: ReplayBuffer(f / "x", fields={"x": {"dtype": "int", "shpe": 3}}),
        FieldError,
        "'shpe'; did you mean 'shape'?",
    ),
    "a slice": (
        lambda f: by_hand(f)[0:3],
        FieldError,
        r"buffer\[0:3\]: an index gives one episode; \[buffer\[i\] for i in .*\[0:3\]\].*episodes=slice\(0, 3\)",
    ),
    "a field of the buffer": (
        lambda f: by_hand(f)["task"],
        FieldError,
        r"buffer.meta\[...\] has a field of all episodes",
    ),
    "one fraction": (
        lambda f: split(by_hand(f), 0.8),
        FieldError,
        r"fractions=0.8: expected how much each subset gets, such as \(0.8, 0.2\)",
    ),
    "normalize": (
        lambda f: timestep_loader(by_hand(f), 2, normalize=True),
        FieldError,
        r"normalize=True: expected names of fields, such as \('observation',\), or statistics\(buffer\)",
    ),
    "a device": (
        lambda f: timestep_loader(by_hand(f), 2, device="cuda"),
        FieldError,
        "device='cuda': this torch .* finds no CUDA device; pass device='cpu'",
    ),
    "an id instead of an environment": (
        lambda f: RecordToBuffer("CartPole-v1", f / "x"),
        TypeError,
        r"expected a gymnasium.Env, got str; pass gymnasium.make\('CartPole-v1'\)",
    ),
    "a folder of buffers": (
        below,
        BufferNotFoundError,
        r"there are buffers below it \(hand\): open one of them, or all as ConcatReplayBuffer\(",
    ),
    "a folder that is not there": (
        lambda f: (by_hand(f), ReplayBuffer.from_folder(f / "hnad")),
        BufferNotFoundError,
        "there is no such folder; did you mean 'hand'?",
    ),
    "a path below a file": (unwritable, StorageError, "a part of the path is a file; choose another folder"),
    "a path without rights": (no_right, StorageError, "give this user the right to write there"),
    "two writers": (
        twice,
        BufferLockedError,
        r"^[^\[]*hand: this process \(\d+\) is writing to this buffer; close it there",
    ),
    "another environment": (
        another_environment,
        ConfigMismatchError,
        "was recorded from 'CartPole-v1', this environment is 'Acrobot-v1'; choose another folder, or overwrite=True",
    ),
    "the beginning of a name": (
        lambda f: timestep_loader(by_hand(f), 2, fields=("obs",)),
        FieldError,
        "fields: unknown field 'obs'; did you mean 'observation'?",
    ),
    "a field to drop": (lambda f: by_hand(f).drop_field("acton"), FieldError, "; did you mean 'action'?$"),
    "a field to rename, of no near name": (
        lambda f: by_hand(f).rename_field("xyz", "x"),
        FieldError,
        r"unknown field 'xyz'; there are \[.*\]; add_field and add_meta_field add one$",
    ),
    "a meta field of an episode's meta": (
        lambda f: by_hand(f).episode(0).meta["tsk"],
        KeyError,
        "unknown meta field 'tsk'; did you mean 'task'?",
    ),
    "a keyword of collect": (
        lambda f: collect("CartPole-v1", f, episode=1),
        TypeError,
        r"collect\(\) has no keyword 'episode'; did you mean 'episodes'\?",
    ),
    "a keyword of select": (
        lambda f: select(f, f / "out", wher="length > 3"),
        TypeError,
        r"select\(\) has no keyword 'wher'; did you mean 'where'\?",
    ),
    "a keyword of dataloader": (
        lambda f: by_hand(f).dataloader(2, timestep_levels=True),
        TypeError,
        "'timestep_levels' .*; did you mean 'timestep_level'?",
    ),
    "a keyword of dataloader for a function": (
        lambda f: timestep_loader(by_hand(f), 2, timestep_level=True),
        TypeError,
        "timestep_level is a keyword of dataloader",
    ),
    "an option of another kind": (
        lambda f: by_hand(f).dataloader(2, discount=0.9),
        FieldError,
        r"discount goes with n_step loading, not with trajectory loading, .*dataloader takes n_steps=\.\.\. for that",
    ),
    "a folder instead of a buffer": (
        lambda f: timestep_loader(f / "x", 2),
        TypeError,
        r"expected a ReplayBuffer or a ConcatReplayBuffer, got PosixPath; pass ReplayBuffer.from_folder\(",
    ),
    "a folder to split": (lambda f: split("data", (0.5, 0.5)), TypeError, r"from_folder\('data'\)"),
    "a folder to replay": (lambda f: replay("data", 0), TypeError, r"from_folder\('data'\)"),
    "the return in a condition": (
        lambda f: select(by_hand(f), f / "x", where="length > 1 and return > 3"),
        FieldError,
        "where: 'return' is a word of Python's own; did you mean 'episode_return'?",
    ),
    "a policy": (
        lambda f: collect("CartPole-v1", f / "x", policy="randm", episodes=1),
        FieldError,
        "policy='randm': expected 'random'",
    ),
}


def _annotated(folder, **meta):
    with RecordToBuffer(gym.make("CartPole-v1"), folder / "x", meta_fields={"task": "str"}) as env:
        env.reset()
        env.annotate(**meta)


def _annotated_step(folder, **extra):
    with RecordToBuffer(gym.make("CartPole-v1"), folder / "x", extra_fields={"log_prob": "float"}) as env:
        env.reset()
        env.annotate_step(**extra)


ON_THE_COMMAND_LINE = {
    "a verb": (["inof", "{hand}"], "there is no inof; did you mean 'info'?"),
    "an option": (["head", "{hand}", "--fileds", "action"], "unknown option '--fileds'; did you mean '--fields'?"),
    "an option with a value": (
        ["record", "CartPole-v1", "{new}", "--epsiodes=3"],
        "'--epsiodes=3'; did you mean '--episodes'?",
    ),
    "no goal": (["record", "CartPole-v1", "{new}"], "--episodes"),
    "a field": (["head", "{hand}", "--fields", "acton"], "--fields: unknown field 'acton'; did you mean 'action'?"),
    "a field of statistics": (["stats", "{hand}", "--fields", "acton"], "did you mean 'action'?"),
    "a condition": (["head", "{hand}", "--where", "lenght > 3"], "did you mean 'length'?"),
    "a format": (["export", "minary", "{hand}", "x/y-v0"], "did you mean 'minari'?"),
    "a folder": (["info", "{parent}/hnad"], "did you mean 'hand'?"),
    "a folder that is taken": (["select", "{hand}", "{hand2}"], "--overwrite to replace it"),
    "the return in a condition": (["head", "{hand}", "--where", "return > 3"], "did you mean 'episode_return'?"),
    "fractions": (["split", "{hand}", "--into", "{new}=0.9"], "--into: expected a sum of 1 of all fractions, got 0.9"),
    "other fields": (["merge", "{hand}", "{taken}", "{new}"], "--fields common --meta-fields common"),
    "a choice": (
        ["record", "CartPole-v1", "{new}", "--episodes", "3", "--vectorization", "asink"],
        "did you mean 'async'?",
    ),
    "a policy": (["record", "CartPole-v1", "{new}", "--episodes", "3", "--policy", "randm"], "--policy 'randm'"),
    "another policy": (
        ["record", "CartPole-v1", "{taken}", "--episodes", "3", "--seed", "7"],
        "seed: stored 0, passed 7. Pass what is stored, choose another folder, or replace the episodes with",
    ),
}


@pytest.mark.parametrize("case", IN_PYTHON)
def test_in_python(tmp_path, case):
    mistake, kind, sentence = IN_PYTHON[case]
    with pytest.raises(kind) as caught:
        mistake(tmp_path)
    said = str(caught.value)
    pattern = sentence.replace("'?", r"'\?")
    assert re.search(pattern, said), said
    assert "[Errno" not in said
    assert "0 more bytes" not in said


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return made(tmp_path_factory.mktemp("data"))


def made(parent):
    for name in ("hand", "hand2"):
        with ReplayBuffer(parent / name, fields={"action": "int"}) as buffer:
            buffer.store_episode(action=[1, 2])
    collect("CartPole-v1", parent / "taken", episodes=1, max_episode_steps=3, progress=False).close()
    return {"parent": parent, "new": parent / "new", **{name: parent / name for name in ("hand", "hand2", "taken")}}


class Terminal(io.StringIO):
    """A standard error that somebody looks at."""

    def isatty(self):
        return True


def said_by(arguments, stream=io.StringIO):
    with contextlib.redirect_stderr(stream()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    return status, errors.getvalue().strip()


@pytest.mark.parametrize("case", ON_THE_COMMAND_LINE)
def test_on_the_command_line(folders, case):
    arguments, sentence = ON_THE_COMMAND_LINE[case]
    status, said = said_by([argument.format(**folders) for argument in arguments])
    assert status == 2
    assert sentence in said
    assert not re.search(r"[a-z_]+=(None|True|False)", said), said
    assert "usage:" not in said


def test_messages_fit_a_terminal(folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for arguments, _ in ON_THE_COMMAND_LINE.values():
        _, said = said_by([argument.format(**folders) for argument in arguments], Terminal)
        lines = [line for line in said.split("\n") if " " in line.strip()]  # a path has no place to break
        assert max(map(len, lines)) <= 80, said


def print_all():
    for name, (mistake, _, _) in IN_PYTHON.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                mistake(Path(folder))
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error).replace(folder, 'data')}")
    with tempfile.TemporaryDirectory() as folder:
        folders = made(Path(folder))
        for name, (arguments, _) in ON_THE_COMMAND_LINE.items():
            given = [argument.format(**folders) for argument in arguments]
            print(f"{name}: {said_by(given)[1].replace(folder, 'data')}")


if __name__ == "__main__":
    print_all()
