"""Copies of a folder: made while nobody writes they are buffers, made meanwhile they are sound or found out."""

import os
import random
import shutil
import subprocess
import sys
import time
import warnings

import pytest
from faults import children, live
from format_helpers import read_counters

from gym_replay import GymReplayError, ReplayBuffer, check_buffer

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

OPTIONS = {"linear": {}, "ring": {"circular": True, "max_steps": 300}}
TOOLS = {
    "cp": ["cp", "-r", "{from}", "{to}"],
    "cp, sparse": ["cp", "-r", "--sparse=always", "{from}", "{to}"],
    "tar": ["sh", "-c", 'mkdir "{to}" && tar -C "{from}" -cf - . | tar -C "{to}" -xf -'],
    "rsync": ["rsync", "-a", "--sparse", "{from}/", "{to}/"],
}


def make(folder, kind, episodes):
    options = {"fields": live.FIELDS, "meta_fields": {"number": "int"}, **OPTIONS[kind]}
    buffer = ReplayBuffer(folder, **options)
    for number in range(episodes):
        live.store(buffer, number)
    return buffer


def copy(tool, source, target):
    if tool == "copytree":
        shutil.copytree(source, target)
        return
    if shutil.which(tool.partition(",")[0]) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "cp, sparse" and sys.platform == "darwin":
        pytest.skip("cp has no --sparse there")
    subprocess.run(
        [part.replace("{from}", str(source)).replace("{to}", str(target)) for part in TOOLS[tool]], check=True
    )


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("tool", ["copytree", *TOOLS])
def test_copy_while_nobody_writes(tmp_path, tool, kind, is_open):
    """Also where the writer has the folder open, and just pauses."""
    buffer = make(tmp_path / "buffer", kind, 60)
    if not is_open:
        buffer.close()
    copy(tool, tmp_path / "buffer", tmp_path / "copy")
    assert contents(tmp_path / "buffer") == contents(tmp_path / "copy")
    report = check_buffer(tmp_path / "copy", progress=False)
    assert report.ok, str(report)
    assert bool(report.without_checksum) == is_open
    with ReplayBuffer(tmp_path / "copy") as copied:  # to write to, beside the original
        ids = [episode.id for episode in copied]
        assert ids == list(range(ids[0], 60))
        assert (ids[0] == 0) == (kind == "linear")
        live.store(copied, 60)
        for episode in copied:
            live.verify_copy(episode.copy())
    report = check_buffer(tmp_path / "copy", progress=False)
    assert report.ok, str(report)
    assert not report.without_checksum
    with ReplayBuffer.from_folder(tmp_path / "buffer", read_only=True) as original:
        assert original.episode(-1).id == 59
    buffer.close()


def write(folder, kind, stop, generator):
    """Record without end, in long and short sessions, with a clear and an update now and then."""
    buffer, number = make(folder, kind, 0), 0
    while not stop.get():
        live.store(buffer, number)
        number += 1
        chance = generator.random()
        if chance < 0.004:
            buffer.close()
            buffer = ReplayBuffer.from_folder(folder)
        elif chance < 0.008:
            buffer.update(action=[episode["action"] for episode in buffer])
        elif chance < 0.010:
            buffer.clear()
        elif chance < 0.03:
            buffer.flush()
    buffer.close()
    return number


def copy_by_file(source, target, generator):
    """Copy file by file in random order; what is gone when its turn comes is left out."""
    paths = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    generator.shuffle(paths)
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / path, target / path)
        except FileNotFoundError:
            continue
        if generator.random() < 0.3:
            time.sleep(generator.random() * 0.004)


def judge(folder):
    """What becomes of a copy: refused, found out, or sound; and episodes that nobody vouches for and that are wrong."""
    try:
        report = check_buffer(folder, progress=False)
    except GymReplayError as error:
        return f"refused: {type(error).__name__}", 0
    if not report.ok:
        try_reading(folder)
        return "found out", 0
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        wrong = {episode.id for episode in buffer if not is_right(episode)}
    assert wrong <= set(report.without_checksum), f"episodes {wrong} were checked, and are wrong"
    with ReplayBuffer.from_folder(folder) as buffer:  # sound enough to go on with
        live.store(buffer, read_counters(folder)["next"])
        live.verify_copy(buffer.episode(-1).copy())
    return "sound", len(wrong)


def is_right(episode):
    try:
        live.verify_copy(episode.copy())
    except AssertionError:
        return False
    return True


def try_reading(folder):
    """A copy that is wrong may be refused, or lose episodes with a warning, but nothing else may happen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
                for episode in buffer:
                    episode.copy()
        except GymReplayError:
            pass


@pytest.mark.parametrize("kind", OPTIONS)
def test_copy_during_recording(tmp_path, kind):
    """A checksum vouches for an episode; those that the check names as having none yet may be wrong in such a copy."""
    generator, stop = random.Random(kind), live.Flag()
    make(tmp_path / "buffer", kind, 5).close()
    shutil.rmtree(tmp_path / "buffer")
    writer = children.Child(lambda: write(tmp_path / "buffer", kind, stop, random.Random(kind)))
    while not (tmp_path / "buffer" / "metadata.json").exists():
        time.sleep(0.01)
    outcomes, wrong = [], 0
    try:
        for number in range(15):
            time.sleep(generator.random() * 0.02)
            target = tmp_path / f"copy{number}"
            copy_by_file(tmp_path / "buffer", target, generator)
            outcome, unchecked = children.run(lambda target=target: judge(target))  # a bus error would show
            outcomes.append(outcome)
            wrong += unchecked
            shutil.rmtree(target)
    finally:
        stop.put(1)
        assert writer.result() > 100
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}, "wrong and unchecked:", wrong)
    assert os.listdir(tmp_path) == ["buffer"]
    assert check_buffer(tmp_path / "buffer", progress=False).ok
