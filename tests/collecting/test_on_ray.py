"""Collecting with Ray: two workers on this machine, one of which is killed."""

import os
import signal
import threading
import time

import gymnasium as gym
import pytest
from collecting_helpers import Wander, brightest, facts_of, is_alive, pid_of_writer

from gym_replay import (
    BufferLockedError,
    ConcatReplayBuffer,
    ConfigMismatchError,
    CorruptBufferError,
    FieldError,
    MissingExtraError,
    ReplayBuffer,
    check_buffer,
    collect,
)
from gym_replay.collecting.target import shards_of
from gym_replay.files.lock import WriterLock

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 << 20,
        log_to_driver=False,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *_path()])}
        },
    )
    yield
    ray.shutdown()


def _path():
    return [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []


def collected(folder, **options):
    options = {"policy": brightest, "episodes": 60, "engine": "ray", "num_workers": 2, "progress": False, **options}
    return collect(Wander, folder, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return facts_of(collect(Wander, tmp_path_factory.mktemp("whole"), policy=brightest, episodes=150, progress=False))


def first(expected, count):
    return {number: expected[number] for number in range(count)}


def test_a_worker_is_killed(tmp_path, expected):
    killed = []

    def kill():
        shard = tmp_path / "shards" / "worker-00001"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.02)
            if (shard / "metadata.json").exists() and len(ReplayBuffer.from_folder(shard, read_only=True)) >= 8:
                killed.append(pid_of_writer(shard))
                os.kill(killed[0], signal.SIGKILL)
                return

    killer = threading.Thread(target=kill)
    killer.start()
    buffer = collected(tmp_path, episodes=150, env_kwargs={"pause": 0.01})
    killer.join()
    assert killed
    assert not is_alive(killed[0])
    assert isinstance(buffer, ConcatReplayBuffer)
    assert facts_of(buffer) == expected  # which holds that no number is there twice
    shards = shards_of(tmp_path)
    assert [shard.name for shard in shards] == ["worker-00000", "worker-00001"]
    for shard in shards:
        assert check_buffer(shard).ok
        assert pid_of_writer(shard) not in (os.getpid(), *killed)
        assert len(ReplayBuffer.from_folder(shard, read_only=True)) > 8
        WriterLock(shard).release()  # nobody holds it


def test_more_with_another_number_of_workers_and_environments(tmp_path, expected):
    assert facts_of(collected(tmp_path, episodes=20)) == first(expected, 20)
    assert facts_of(collected(tmp_path, episodes=30, num_workers=1, num_envs=3)) == first(expected, 30)
    assert facts_of(collected(tmp_path, episodes=30)) == first(expected, 30)
    with pytest.raises(ConfigMismatchError, match="seed: stored 0, passed 4"):
        collected(tmp_path, episodes=40, seed=4)
    with pytest.raises(ConfigMismatchError, match="engine='ray'"):
        collect(Wander, tmp_path, policy=brightest, episodes=40, progress=False)
    with pytest.raises(ConfigMismatchError, match="engine='ray'"):
        collected(tmp_path / "shards" / "worker-00000")


def test_steps_and_keep(tmp_path):
    options = {"steps": 200, "episodes": None, "keep": _is_long, "record_info": True}
    alone = collect(Wander, tmp_path / "alone", **{**options, "progress": False})
    assert facts_of(collected(tmp_path / "ray", policy="random", **options)) == facts_of(alone)


def _is_long(episode):
    return len(episode) > 3


def test_fewer_processors_than_workers(tmp_path, expected):
    buffer = collected(tmp_path, episodes=30, num_workers=4)
    assert facts_of(buffer) == first(expected, 30)


class _Rare(Wander):
    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, **({"rare": 1.5} if self.left == 7 else {})}


def test_infos_that_few_episodes_have(tmp_path):
    options = {"policy": brightest, "episodes": 40, "record_info": True, "progress": False}
    alone = collect(_Rare, tmp_path / "alone", **options)
    together = collect(_Rare, tmp_path / "ray", engine="ray", num_workers=2, **options)
    assert "info.rare" in together.fieldnames
    assert facts_of(together) == facts_of(alone)


def test_what_a_worker_raises_is_raised_here(tmp_path):
    with pytest.raises(RuntimeError, match="gave way"):
        collected(tmp_path, env_kwargs={"fail_at": 30})
    there = [len(ReplayBuffer.from_folder(shard, read_only=True)) for shard in shards_of(tmp_path)]
    assert sum(there) > 0
    for shard in shards_of(tmp_path):
        WriterLock(shard).release()
        assert check_buffer(shard).ok


def _dies():
    os._exit(1)


def test_a_worker_that_dies_again_and_again_ends_it(tmp_path):
    with pytest.raises(ray.exceptions.RayError):
        collect(_dies, tmp_path, episodes=3, engine="ray", num_workers=1, progress=False)


def test_ctrl_c(tmp_path, expected):
    def press():
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if sum(len(ReplayBuffer.from_folder(shard, read_only=True)) for shard in shards_of(tmp_path)) > 10:
                break
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    with pytest.raises(KeyboardInterrupt):
        collected(tmp_path, episodes=10_000, env_kwargs={"pause": 0.002})
    presser.join()
    found = facts_of(ConcatReplayBuffer(shards_of(tmp_path)))
    assert 10 < len(found) < 10_000
    for shard in shards_of(tmp_path):
        WriterLock(shard).release()
        assert check_buffer(shard).verified


def test_two_at_once_are_refused(tmp_path):
    lock = WriterLock(tmp_path)
    with pytest.raises(BufferLockedError):
        collected(tmp_path)
    lock.release()


def test_a_number_in_two_shards_is_named(tmp_path):
    for episodes in range(8, 200, 8):  # the worker that is ready first may play all of a few
        collected(tmp_path, episodes=episodes).close()
        shards = shards_of(tmp_path)
        if len(shards) == 2 and all(len(ReplayBuffer.from_folder(shard, read_only=True)) for shard in shards):
            break
    first_shard, second_shard = shards
    with ReplayBuffer.from_folder(first_shard) as one, ReplayBuffer.from_folder(second_shard) as other:
        one.update(0, collect_index=other.episode(0).meta["collect_index"])
    with pytest.raises(CorruptBufferError, match="twice"):
        collected(tmp_path, episodes=episodes + 1)


def test_arguments(tmp_path, monkeypatch):
    with pytest.raises(FieldError, match="num_workers"):
        collected(tmp_path, num_workers=0)
    with pytest.raises(FieldError, match="native"):
        collected(tmp_path, vectorization="native")
    collect("CartPole-v1", tmp_path / "plain", episodes=1, progress=False).close()
    with pytest.raises(ConfigMismatchError, match="not collected with engine='ray'"):
        collect("CartPole-v1", tmp_path / "plain", episodes=1, engine="ray", progress=False)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gym-replay\[ray\]'"):
        collected(tmp_path / "data")


def test_ids_that_only_this_process_has_registered(tmp_path):
    gym.register("OnlyHere-v0", entry_point="collecting_helpers:Wander", max_episode_steps=5)
    try:
        buffer = collect("OnlyHere-v0", tmp_path, episodes=10, engine="ray", num_workers=2, progress=False)
        assert len(buffer) == 10
        assert buffer.episode_lens.max() == 5
    finally:
        gym.registry.pop("OnlyHere-v0")
