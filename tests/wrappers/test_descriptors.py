"""At the limit of open files: one clear error, or one warning and what could be kept, and nothing committed is lost.

Each test runs in a process of its own, whose limit is lowered.
"""

import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gym_replay import ReplayBuffer, check_buffer

BEGIN = """
import resource, sys, warnings
sys.path.insert(0, {tests!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
import gymnasium as gym
import numpy as np
from wrappers.scripted import Scripted, play
from gym_replay import RecordToBuffer, ReplayBuffer, StorageError
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecordToBuffer

warnings.simplefilter("always")
warnings.showwarning = lambda message, *others: print("warning:", message)
folder = sys.argv[3]
"""


def run(script, folder, limit):
    """What a script prints that may have so many files open."""
    begin = BEGIN.format(tests=str(Path(__file__).parents[1]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    command = [sys.executable, "-c", begin + textwrap.dedent(script), str(limit), str(hard), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def opened(folder):
    assert check_buffer(folder, progress=False).ok
    return ReplayBuffer.from_folder(folder, read_only=True)


MANY = {
    "single": "env = RecordToBuffer(Scripted(9, info=info), folder, record_info=True); play(env, 3); env.close()",
    "vector": """
envs = gym.vector.SyncVectorEnv([lambda: Scripted(9, info=info)] * 3)
env = VectorRecordToBuffer(envs, folder, record_info=True)
env.reset()
for _ in range(9):
    env.step(np.zeros(3, int))
env.close()
""",
    "ring": """
env = RecordToBuffer(Scripted(9, info=info), folder, record_info=True, circular=True, max_episodes=3)
play(env, 4)
env.close()
""",
}


@pytest.mark.parametrize(
    ("kind", "limit", "entries"),
    [("single", 256, 160), ("single", 256, 9), ("vector", 256, 100), ("ring", 256, 70)],
)
def test_infos_of_many_entries(tmp_path, kind, limit, entries):
    script = f"info = lambda env, t: {{f'k{{i}}': i + t for i in range({entries})}}\n{MANY[kind]}"
    said = run(script, tmp_path, limit)
    with opened(tmp_path) as buffer:
        assert len(buffer) == 3
        kept = [name for name in buffer.fieldnames if name.startswith("info.")]
        for episode in buffer:
            assert episode["reward"].tolist() == list(range(1, 10))
            for name in kept:
                assert episode[name].tolist() == list(range(int(name[6:]), int(name[6:]) + 10))
                assert episode["info_present" + name[4:]].all()
    if entries == 9:
        assert len(kept) == 9
        assert said == []
        return
    assert len(kept) >= limit // 20
    first, last = said  # one warning that names them, and the count at the end
    assert f"and {entries - len(kept) - 20} more: left out" in first
    assert f"may have {limit} files open" in first
    rows = 40 if kind == "ring" else 30
    assert last.startswith(f"warning: {rows * (entries - len(kept))} values in infos were left out")


@pytest.mark.parametrize(("limit", "count"), [(128, 20), (256, 40)])
def test_many_recorders(tmp_path, limit, count):
    """Some cannot be made or opened, and say so; all others go on, and end."""
    said = run(
        f"""
        envs, info = [], {{t: {{"x": t}} for t in range(9)}}
        for number in range({count}):
            try:
                envs.append(RecordToBuffer(Scripted(9, info=info), f"{{folder}}/{{number}}"))
            except StorageError as error:
                print("made:", error)
                break
        for _ in range(3):
            for env in envs:
                try:
                    play(env)
                except StorageError as error:
                    print("played:", error)
        for env in envs:
            env.close()
            env.buffer.close()
        print(len(envs))
        """,
        tmp_path,
        limit,
    )
    made = int(said[-1])
    assert 0 < made < count
    assert all(f"may have {limit} files open" in line for line in said[:-1])
    assert said[0].startswith(("made:", "played:"))
    lengths = []
    for number in range(made):
        with opened(tmp_path / str(number)) as buffer:
            lengths.append(len(buffer))
            assert all(episode["reward"].tolist() == list(range(1, 10)) for episode in buffer)
    assert max(lengths) == 3
    assert sum(lengths) == 3 * made - sum(line.startswith("played") for line in said)


CHANGES = {
    "update": "buffer.update(x=[[7.0] * 4] * 3)",
    "add_field": "buffer.add_field('y', ('int', 2))",
    "store": "buffer.release(); hold(); buffer.store_episode(x=[1.0])",
    "open": "ReplayBuffer(folder)",
    "create": "ReplayBuffer(folder + '/more', fields={'x': 'float'})",
}


REFUSED = """
folder = root + "/{name}"
buffer = ReplayBuffer(folder, fields={{"x": "float"}})
for number in range(3):
    buffer.store_episode(x=[1.0 + number] * 4)
hold()
try:
    {change}
except StorageError as error:
    print(error)
while held:
    held.pop().close()
buffer.store_episode(x=[9.0])
print([episode["x"].tolist() for episode in buffer])
buffer.close()
"""


def test_no_descriptor_is_left(tmp_path):
    """What is refused says why, and the buffer goes on when there are some again."""
    begin = """
root, held = folder, []

def hold():
    try:
        while True:
            held.append(open("/dev/null"))
    except OSError:
        pass
"""
    script = begin + "".join(REFUSED.format(name=name, change=change) for name, change in CHANGES.items())
    said = run(script, tmp_path, 128)
    assert len(said) == 2 * len(CHANGES)
    for name, refusal, episodes in zip(CHANGES, said[::2], said[1::2], strict=True):
        assert "may have 128 files open" in refusal
        assert eval(episodes)[-4:] == [[1.0] * 4, [2.0] * 4, [3.0] * 4, [9.0]]
        with opened(tmp_path / name) as buffer:
            assert len(buffer) == 4
