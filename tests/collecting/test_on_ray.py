"""Collecting with Ray: two workers on this machine, one of which is killed."""

import fcntl
import json
import os
import shutil
import signal
import threading
import time

import gymnasium as gym
import pytest
from collecting_helpers import (
    Hesitant,
    Wander,
    assert_infos,
    assert_unlocked,
    brightest,
    facts_of,
    is_alive,
    pid_of_writer,
    shards_of,
)

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
        until = time.monotonic() + 300
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
        assert_unlocked(shard)


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


def _is_long(episode):
    return len(episode) > 3


class _Rare(Wander):
    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, **({"rare": 1.5} if self.left == 7 else {})}


def test_steps_and_keep_and_infos_that_few_episodes_have(tmp_path):
    options = {"steps": 200, "keep": _is_long, "record_info": True, "progress": False}
    alone = collect(_Rare, tmp_path / "alone", **options)
    together = collect(_Rare, tmp_path / "ray", engine="ray", num_workers=2, **options)
    assert "info.rare" in together.fieldnames
    assert facts_of(together) == facts_of(alone)


def test_fewer_processors_than_workers_and_an_id_that_only_this_process_has_registered(tmp_path):
    gym.register("OnlyHere-v0", entry_point="collecting_helpers:Wander", max_episode_steps=5)
    try:
        options = {"episodes": 30, "progress": False}
        expected = facts_of(collect("OnlyHere-v0", tmp_path / "alone", **options))
        buffer = collect("OnlyHere-v0", tmp_path / "ray", engine="ray", num_workers=4, **options)
        assert facts_of(buffer) == expected
        assert buffer.episode_lens.max() == 5
    finally:
        gym.registry.pop("OnlyHere-v0")


def _note_as_on_ray(folder):
    """Say of a folder of shards what they say of themselves."""
    told = json.loads((folder / "shards" / "worker-00000" / "collect.json").read_text())
    (folder / "collect.json").write_text(json.dumps({**told, "uuid": ""}))


def test_shards_take_the_wider_dtype_of_an_info(tmp_path):
    """What workers recorded apart is one buffer in the end."""
    options = {"policy": "random", "record_info": True, "progress": False}
    for place, seed in enumerate((0, 1, 5)):  # of the first only, no episode is long enough for a fraction
        shard = tmp_path / "shards" / f"worker-{place:05d}"
        with collect(Hesitant, shard, episodes=3, seed=seed, **options) as buffer:
            buffer.update(collect_index=[3 * place, 3 * place + 1, 3 * place + 2])
    _note_as_on_ray(tmp_path)
    collect(Hesitant, tmp_path, episodes=9, engine="ray", **options).close()
    dtypes = set()
    for shard in shards_of(tmp_path):
        with ReplayBuffer.from_folder(shard, read_only=True) as buffer:
            dtypes.add(buffer.metadata.fields["info.p"].dtype.name)
            assert_infos(buffer)
        assert check_buffer(shard, progress=False).ok
    assert dtypes == {"float64"}
    assert len(ConcatReplayBuffer(shards_of(tmp_path))) == 9


def test_what_a_worker_raises_is_raised_here(tmp_path):
    with pytest.raises(RuntimeError, match="gave way"):
        collected(tmp_path, env_kwargs={"fail_at": 30})
    there = [len(ReplayBuffer.from_folder(shard, read_only=True)) for shard in shards_of(tmp_path)]
    assert sum(there) > 0
    for shard in shards_of(tmp_path):
        assert_unlocked(shard)
        assert check_buffer(shard).ok


def _dies():
    os._exit(1)


def test_a_worker_that_dies_again_and_again_ends_it(tmp_path):
    with pytest.raises(ray.exceptions.RayError):
        collect(_dies, tmp_path, episodes=3, engine="ray", num_workers=1, progress=False)


def test_ctrl_c(tmp_path, expected):
    def press():
        until = time.monotonic() + 300
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
        assert_unlocked(shard)
        assert check_buffer(shard).verified


def test_two_at_once_are_refused(tmp_path):
    with open(tmp_path / "writer.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BufferLockedError):
            collected(tmp_path)


def test_an_index_in_two_shards_is_named(tmp_path):
    first_shard = tmp_path / "shards" / "worker-00000"
    collect(Wander, first_shard, policy=brightest, episodes=3, progress=False).close()
    shutil.copytree(first_shard, tmp_path / "shards" / "worker-00001")
    _note_as_on_ray(tmp_path)
    with pytest.raises(CorruptBufferError, match="worker-00001: collect_index 0 is there twice"):
        collected(tmp_path, episodes=4)


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
