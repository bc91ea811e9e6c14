"""What a folder says is never reason enough to allocate: tables are read run by run, and metadata has a size."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain
from format_helpers import read_metadata, sign, write_counters, write_metadata

from gym_replay import CorruptBufferError, FieldError, ReplayBuffer, check_buffer
from gym_replay.buffer.storage import records
from gym_replay.buffer.storage.records import record_runs

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


@pytest.mark.parametrize(
    ("first", "end", "base", "capacity"),
    [(0, 0, 0, None), (0, 10, 0, None), (5, 12, 3, None), (0, 4, 0, 4), (6, 10, 0, 4), (9, 12, 3, 5), (4, 8, 4, 7)],
)
@pytest.mark.parametrize("record_nbytes", [21, 1 << 22, 1 << 25])
def test_runs_are_every_id_once_side_by_side(first, end, base, capacity, record_nbytes):
    runs = list(record_runs(first, end, base, capacity, record_nbytes))
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in runs)])
    assert ids.tolist() == list(range(first, end))
    for ids, slot in runs:
        slots = records.slots_of(ids, base, capacity)
        assert slots.tolist() == list(range(slot, slot + len(ids)))
        assert len(ids) * record_nbytes <= 1 << 24 or len(ids) == 1


def test_a_ring_is_read_in_the_order_of_its_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS_AT_ONCE", 3)
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
    default = np.arange(4_000_000, dtype=np.float64)
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
