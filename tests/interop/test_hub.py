"""The hub of Hugging Face, with its own client and file system, against a stand-in of its HTTP interface."""

import subprocess
import sys
from pathlib import Path

import pytest
from buffer_helpers import run_script

pytest.importorskip("huggingface_hub")
pytest.importorskip("numcodecs")

SCRIPT = """
import sys
sys.path[:0] = sys.argv[2:]
from remote_helpers import LOADERS, add, all_values, batches, make
import gym_replay
from gym_replay import BufferNotFoundError, ReplayBuffer, StorageError, pull, push

folder, url = sys.argv[1], "hf://datasets/me/cartpole/recorded"
buffer = make(folder + "/here", 20)
first = push(buffer, url, licence="mit")
assert first.sent > 0
assert push(buffer, url).sent == 0
before = all_values(buffer)
add(buffer, 5)
assert push(buffer, url).num_episodes == 25
assert all_values(pull(url, folder + "/back")) == all_values(buffer)
assert all_values(pull(url, folder + "/first", revision=first.revision)) == before
assert len(pull(url, folder + "/some", where="episode_return >= 20", fields=["reward"])) == 5
there = ReplayBuffer.from_url(url)
assert all_values(there) == all_values(buffer)
assert batches(LOADERS["window"](there, shuffle="block", seed=1)) == batches(
    LOADERS["window"](buffer, shuffle="block", seed=1)
)
for wrong in ("hf://datasets/me/nothing", "hf://datasets/me/cartpole/nothing"):
    try:
        pull(wrong, folder + "/wrong")
    except (BufferNotFoundError, StorageError) as error:
        print(error)
    else:
        raise AssertionError
"""


def test_there_and_back(tmp_path, monkeypatch):
    here = Path(__file__)
    with subprocess.Popen(
        [sys.executable, str(here.with_name("hub_server.py"))], stdout=subprocess.PIPE, text=True
    ) as hub:
        port = hub.stdout.readline().strip()
        settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
        for name, value in {**settings, "HF_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        status, text = run_script(SCRIPT, tmp_path, here.parents[1])
        hub.kill()
    assert status == 0, text
