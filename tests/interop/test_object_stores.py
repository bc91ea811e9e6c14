"""An S3 server on this machine, whose answers take 20 ms: pushed to, pulled from, read from, killed, damaged, moved."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from buffer_helpers import run_script
from remote_helpers import LOADERS, add, all_values, batches, make

from gym_replay import (
    BufferNotFoundError,
    CorruptBufferError,
    ReplayBuffer,
    StorageError,
    check_buffer,
    pull,
    push,
)

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")

pytestmark = pytest.mark.filterwarnings("ignore")  # these packages warn of much that is not ours

LATENCY = 0.02


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(LATENCY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@pytest.fixture
def place(server, monkeypatch, tmp_path):
    """An empty bucket: the address of a data set in it, and what a file system is made with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    options = {"key": "test", "secret": "test", "endpoint_url": server}
    files = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
    bucket = f"bucket-{time.time_ns()}"
    files.mkdir(bucket)
    return f"s3://{bucket}/data/set", {"storage_options": options}, files


def largest(files, url):
    found = files.find(f"{url}/objects", detail=True)
    return max(found, key=lambda path: found[path]["size"])


def test_there_and_back(tmp_path, place):
    url, options, _ = place
    with make(tmp_path / "here", 40) as buffer:
        push(buffer, url, **options)
        assert push(buffer, url, **options).sent == 0
        add(buffer, 5)
        push(buffer, url, **options)
        with pull(url, tmp_path / "back", **options) as back:
            assert all_values(back) == all_values(buffer)
        assert check_buffer(tmp_path / "back").ok
        with pull(url, tmp_path / "some", where="episode_return >= 35", fields=["frame"], **options) as some:
            assert len(some) == 10
        there = ReplayBuffer.from_url(url, **options)
        assert all_values(there) == all_values(buffer)
        for kind, load in LOADERS.items():
            assert batches(load(there, shuffle="block", seed=1)) == batches(load(buffer, shuffle="block", seed=1)), kind


KILLED = """
import json, os, sys
import gym_replay, s3fs
method, most, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
original, count = getattr(s3fs.S3FileSystem, method), 0
async def call(self, path, *arguments, **given):
    global count
    count += 1
    if count > most:
        os._exit(9)
    return await original(self, path, *arguments, **given)
setattr(s3fs.S3FileSystem, method, call)
verb = gym_replay.push if method == "_pipe_file" else gym_replay.pull
verb(sys.argv[4], sys.argv[5], storage_options=options)
"""


def test_killed_in_the_middle(tmp_path, place):
    url, options, files = place
    given = json.dumps(options["storage_options"])
    buffer = make(tmp_path / "here", 40)
    assert run_script(KILLED, "_pipe_file", 9, given, tmp_path / "here", url)[0] == 9
    assert files.find(f"{url}/objects")
    with pytest.raises(BufferNotFoundError):
        pull(url, tmp_path / "back", **options)
    push(buffer, url, **options)
    assert run_script(KILLED, "_cat_file", 9, given, url, tmp_path / "back")[0] == 9
    assert not (tmp_path / "back").exists()
    with pull(url, tmp_path / "back", **options) as back:
        assert all_values(back) == all_values(buffer)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_damaged_objects(tmp_path, place, damage):
    url, options, files = place
    with make(tmp_path / "here", 40) as buffer:
        push(buffer, url, **options)
    path = largest(files, url)
    content = files.cat_file(path)
    if damage == "gone":
        files.rm_file(path)
    else:
        files.pipe_file(path, content[:50] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptBufferError, match=path[-64:]):
        pull(url, tmp_path / "back", **options)
    assert not (tmp_path / "back").exists()
    with pytest.raises(CorruptBufferError, match=path[-64:]):
        all_values(ReplayBuffer.from_url(url, **options))


def test_a_revision_that_moves_under_a_reader(tmp_path, place):
    url, options, _ = place
    with make(tmp_path / "here", 20) as buffer:
        first, before = push(buffer, url, **options), all_values(buffer)
        there = ReplayBuffer.from_url(url, **options)
        buffer.delete([0, 1])
        add(buffer, 10)
        push(buffer, url, **options)
        assert all_values(there) == before
        with pull(url, tmp_path / "first", revision=first.revision, **options) as back:
            assert all_values(back) == before


def test_no_such_bucket_and_wrong_server(tmp_path, place):
    url, options, _ = place
    buffer = make(tmp_path / "here", 1)
    with pytest.raises((StorageError, BufferNotFoundError)):
        push(buffer, "s3://no-such-bucket/x", **options)
    with pytest.raises(BufferNotFoundError):
        pull(f"{url}/nothing", tmp_path / "back", **options)
    wrong = {**options["storage_options"], "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match="the store refused"):
        pull(url, tmp_path / "back", storage_options=wrong)


def test_a_server_that_is_out_of_order_is_asked_a_few_times():
    """Our own attempts are five; the package of the store adds one to each, and not five."""
    asked = []

    class OutOfOrder(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *details):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), OutOfOrder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = {"key": "x", "secret": "y", "endpoint_url": f"http://127.0.0.1:{server.server_port}"}
        with pytest.raises(StorageError, match="the store refused"):
            ReplayBuffer.from_url("s3://bucket/data", storage_options=options)
        server.shutdown()
    assert 5 <= len(asked) <= 10
