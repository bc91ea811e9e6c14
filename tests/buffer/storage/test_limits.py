"""What a folder says is never reason enough to allocate: tables are read run by run, and metadata has a size."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain
from format_helpers import read_metadata, sign, write_counters, write_metadata
from internals import small_sizes

from gym_replay import CorruptBufferError, FieldError, ReplayBuffer, check_buffer

MEASURE = """
import resource, sys, warnings
from gym_replay import ReplayBuffer, check_buffer
warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
buffer = ReplayBuffer.from_folder(sys.argv[1], read_only=True)
report = check_buffer(sys.argv[1], progress=False)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(len(buffer), report.faults[0].episode, grown // 1024)
"""


def test_a_ring_is_read_in_the_order_of_its_ids(tmp_path, monkeypatch):
    small_sizes(monkeypatch, records_at_once=3)
    buffer = make_plain(tmp_path, circular=True, max_episodes=7)
    add(buffer, *[1] * 18)
    buffer.close()
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert [episode.id for episode in buffer] == list(range(11, 18))
        assert contents(buffer) == [[700]] * 7
    assert check_buffer(tmp_path, progress=False).verified


def test_a_sparse_table_of_a_thousand_million_records_takes_no_memory(tmp_path):
    buffer = make_plain(tmp_path)
    add(buffer, 1, 2)
    buffer.close()
    count = 1 << 30
    path = tmp_path / "episodes.npy"
    values = np.load(path)
    with path.open("r+b") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": values.dtype.descr, "fortran_order": False, "shape": (count,)}
        )
        stream.truncate(stream.tell() + count * values.itemsize)
    write_counters(tmp_path, next=count)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    episodes_found, bad, grown = map(int, done.stdout.split())
    assert (episodes_found, bad) == (2, 2)
    assert grown < 100


@pytest.mark.parametrize("filler", ["[],", '{"a":0},'])
def test_metadata_of_very_many_values_is_refused_before_it_is_parsed(tmp_path, filler):
    make_plain(tmp_path).close()
    path = tmp_path / "metadata.json"
    content = read_metadata(tmp_path) | {"environment": {"x": "FILLER"}}
    path.write_bytes(sign(json.dumps(content).replace('"FILLER"', f"[{filler * 600_000}0]").encode()))
    with pytest.raises(CorruptBufferError, match=r"metadata\.json: \d+ (brackets and braces|colons), expected"):
        ReplayBuffer.from_folder(tmp_path)


def test_a_default_of_many_values_for_a_small_field_is_refused(tmp_path):
    make_plain(tmp_path).close()
    content = read_metadata(tmp_path)
    content["fields"][0]["default"] = [0] * 1000
    write_metadata(tmp_path, content)
    with pytest.raises(CorruptBufferError, match="the default of 'x' has another shape"):
        ReplayBuffer.from_folder(tmp_path)


def test_meta_fields_larger_than_a_record_may_be_are_refused_at_creation(tmp_path):
    with pytest.raises(FieldError, match="'video': the meta fields of one episode take"):
        make_plain(tmp_path / "buffer", meta_fields={"score": "float", "video": ("uint8", (1 << 26,))})
    assert not (tmp_path / "buffer").exists()


def test_a_description_that_could_not_be_opened_again_is_not_written(tmp_path):
    default = np.arange(2_000_000, dtype=np.float64)
    with pytest.raises(FieldError, match="the description of the buffer is too large"):
        ReplayBuffer(tmp_path / "buffer", fields={"x": ("float64", default.shape, default)})
    with pytest.raises(FileNotFoundError):
        ReplayBuffer.from_folder(tmp_path / "buffer")


def test_a_file_larger_than_the_address_space_is_mapped_as_far_as_it_is_needed(tmp_path):
    buffer = make_plain(tmp_path)
    add(buffer, 1, 2)
    buffer.close()
    path, count = tmp_path / "steps" / "x.npy", 1 << 36
    with path.open("r+b") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (count,)})
        stream.truncate(128 + count * 8)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 36, limit[1]))
    try:
        with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
            assert contents(buffer) == [[0], [100, 101]]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
