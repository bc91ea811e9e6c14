"""One column: a standard .npy file at any time, growing in chunks, read through views that stay."""

import os
import pickle
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import ColumnWriter

from gym_replay import CorruptBufferError, StorageError
from gym_replay.buffer.storage import columns
from gym_replay.buffer.storage.columns import FIRST_CHUNK, Column, encode_header
from gym_replay.files.directory import Directory, open_beneath

F8 = np.dtype("<f8")
DTYPES = st.sampled_from([np.dtype(name) for name in ("?", "u1", "<i2", "<u4", "<i8", "<f2", "<f4", "<f8")])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A column that is opened with NumPy after every call that changes its file."""
    column = ColumnWriter.create(Directory(tmp_path), "steps/x.npy", F8, (2,))
    counts = {"pwrite": 0, "ftruncate": 0}
    seen = []

    def watch(name):
        real = getattr(os, name)

        def watched_call(*arguments):
            result = real(*arguments)
            counts[name] += 1
            array = np.load(column.path, mmap_mode="r", allow_pickle=False)
            assert array.shape[1:] == (2,)
            assert array.dtype == F8
            seen.append(len(array))
            return result

        monkeypatch.setattr(os, name, watched_call)

    watch("pwrite")
    watch("ftruncate")
    yield column, counts, seen
    column.close()


def rows_of(first, count):
    return (np.arange(first * 2, (first + count) * 2, dtype=F8)).reshape(count, 2)


def test_the_file_is_valid_at_any_time_while_it_grows_and_shrinks(watched):
    column, counts, seen = watched
    written = 0
    for count in (1, 1, 7, 4000, 1, 5000, 20_000):
        column.write(written, rows_of(written, count).tobytes())
        written += count
        array = np.load(column.path, mmap_mode="r")
        assert len(array) == column.capacity >= written
        assert np.array_equal(array[:written], rows_of(0, written))
    for rows in (20_000, 5, 1, 0):
        column.trim(rows)
        array = np.load(column.path, mmap_mode="r")
        assert np.array_equal(array, rows_of(0, rows))
        assert column.path.stat().st_size == 128 + rows * 16
    assert counts["ftruncate"] >= 6
    assert max(seen) >= written


def test_growing_is_extend_then_header_and_trimming_is_header_then_cut(tmp_path, monkeypatch):
    column = ColumnWriter.create(Directory(tmp_path), "x.npy", F8)
    calls = []
    for name in ("pwrite", "ftruncate"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, real=real, name=name: (calls.append((name, args[-1])), real(*args))[1]
        )
    column.reserve(10)
    assert calls == [("ftruncate", 128 + FIRST_CHUNK), ("pwrite", 0)]
    calls.clear()
    column.trim(3)
    assert calls == [("pwrite", 0), ("ftruncate", 128 + 24)]
    calls.clear()
    column.trim(3)
    column.trim(4)
    column.reserve(3)
    assert calls == []
    assert column.capacity == 3
    column.close()


def test_a_file_grows_by_chunks_that_double_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "FIRST_CHUNK", 1 << 8)
    monkeypatch.setattr(columns, "LARGEST_CHUNK", 1 << 12)
    column = ColumnWriter.create(Directory(tmp_path), "x.npy", F8)
    sizes = [0]
    for row in range(3000):
        column.write(row, b"12345678")
        if column.capacity != sizes[-1]:
            sizes.append(column.capacity)
    assert sizes[:7] == [0, 32, 64, 128, 256, 512, 1024]
    assert set(np.diff(sizes[6:])) == {512}
    column.reserve(100_000)
    assert column.capacity == 100_000, "what is asked for at once is given at once"
    column.close()


def test_rows_larger_than_a_chunk(tmp_path):
    column = ColumnWriter.create(Directory(tmp_path), "x.npy", np.dtype("u1"), (3 * FIRST_CHUNK,))
    for row in range(3):
        column.write(row, bytes([row]) * (3 * FIRST_CHUNK))
        assert column.capacity >= row + 1
    assert np.load(column.path, mmap_mode="r")[:3, -1].tolist() == [0, 1, 2]
    column.close()


def test_growth_takes_no_more_than_it_needs_where_there_is_no_room_for_a_chunk(tmp_path, monkeypatch):
    column = ColumnWriter.create(Directory(tmp_path), "x.npy", F8)
    real = os.ftruncate

    def ftruncate(descriptor, size):
        if size > 128 + 8 * 100:
            raise OSError(27, "File too large")
        real(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    for row in range(100):
        column.write(row, np.float64(row).tobytes())
    assert column.capacity == 100
    with pytest.raises(StorageError, match=r"x\.npy") as caught:
        column.write(100, bytes(8))
    assert caught.value.errno == 27
    assert "free some space" in str(caught.value)
    assert column.capacity == 100
    assert np.load(column.path, mmap_mode="r").tolist() == list(range(100))
    monkeypatch.undo()
    column.write(100, np.float64(100).tobytes())
    assert np.load(column.path, mmap_mode="r")[:101].tolist() == list(range(101))
    column.close()


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    column = ColumnWriter.create(Directory(tmp_path), "x.npy", F8)
    column.reserve(1000)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: real(descriptor, memoryview(data)[:100], at))
    column.write(0, np.arange(1000, dtype=F8).tobytes())
    monkeypatch.undo()
    assert column.read_array(0, 1000).tolist() == list(range(1000))
    column.close()


@settings(max_examples=80)
@given(DTYPES, SHAPES, st.integers(0, (1 << 61) - 1))
def test_the_length_of_a_header_does_not_depend_on_the_rows(tmp_path_factory, dtype, shape, rows):
    header = encode_header(dtype, shape, rows)
    assert len(header) == len(encode_header(dtype, shape, 0))
    assert len(header) % 64 == 0
    assert header.startswith(b"\x93NUMPY\x01\x00")
    path = tmp_path_factory.getbasetemp() / "header.npy"
    path.write_bytes(header)
    with open(path, "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((rows, *shape), False, dtype)


@settings(max_examples=40)
@given(DTYPES, SHAPES, st.lists(st.integers(1, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_what_is_written_is_read(tmp_path_factory, dtype, shape, counts, random):
    folder = tmp_path_factory.mktemp("column")
    with ColumnPair(folder, dtype, shape) as (writer, reader):
        content = np.frombuffer(random.randbytes(sum(counts) * max(writer.row_nbytes, 1)), np.uint8)[
            : sum(counts) * writer.row_nbytes
        ].tobytes()
        if dtype == np.bool_:
            content = bytes(byte & 1 for byte in content)
        expected = np.frombuffer(content, dtype).reshape(sum(counts), *shape) if writer.row_nbytes else None
        row = 0
        for count in counts:
            writer.write(row, content[row * writer.row_nbytes : (row + count) * writer.row_nbytes])
            row += count
            writer.reserve(row)
            assert reader.view(row).shape == (row, *shape)
        if expected is not None:
            assert reader.view(row).tobytes() == expected.tobytes()
            assert writer.read_array(0, row).tobytes() == expected.tobytes()
        writer.trim(row)
        assert np.load(writer.path).shape == (row, *shape)
        assert np.load(writer.path).dtype == dtype


def read_column(*arguments):
    """A column whose file was looked at."""
    column = Column(*arguments)
    column.follow()
    return column


class ColumnPair:
    """A writer and a reader of one column."""

    def __init__(self, folder, dtype=F8, shape=(), name="x.npy"):
        self.writer = ColumnWriter.create(Directory(folder), name, dtype, shape)
        self.reader = Column(folder, name, dtype, shape)

    def __enter__(self):
        return self.writer, self.reader

    def __exit__(self, *details):
        self.writer.close()


def test_a_view_of_a_growing_file(tmp_path):
    with ColumnPair(tmp_path) as (writer, reader):
        assert reader.view(0).shape == (0,)
        with pytest.raises(CorruptBufferError, match="expected at least 1 rows, got 0"):
            reader.view(1)
        views = []
        for row in range(0, 30_000, 3000):
            writer.write(row, np.arange(row, row + 3000, dtype=F8).tobytes())
            views.append(reader.view(row + 3000))
        for number, view in enumerate(views, 1):
            assert view.tolist() == list(range(number * 3000))
            assert not view.flags.writeable
            with pytest.raises(ValueError, match="WRITEABLE"):
                view.flags.writeable = True
        writer.write(0, np.float64(-1).tobytes())
        assert [view[0] for view in views] == [-1] * 10, "a view shows the file, not a copy"
        with pytest.raises(CorruptBufferError, match="rows"):
            reader.view(writer.capacity + 1)
        writer.trim(30_000)
        assert views[-1].sum() == sum(range(30_000)) - 1


def test_rows_of_no_bytes(tmp_path):
    with ColumnPair(tmp_path, F8, (2, 0)) as (writer, reader):
        writer.write(0, b"")
        writer.reserve(7)
        assert reader.view(7).shape == (7, 2, 0)
        assert not reader.view(7).flags.writeable
        assert np.load(writer.path, mmap_mode="r").shape == (7, 2, 0)
        assert writer.read_array(3, 2).shape == (2, 2, 0)
        writer.trim(4)
        assert np.load(writer.path, mmap_mode="r").shape == (4, 2, 0)
        writer.close()
        with pytest.raises(CorruptBufferError):
            Column(tmp_path, "x.npy", F8, (2, 0)).view(5)


def test_reading_past_the_end(tmp_path):
    with ColumnPair(tmp_path) as (writer, _):
        writer.write(0, np.arange(5, dtype=F8).tobytes())
        writer.trim(5)
        assert writer.read(5, 0) == b""
        assert writer.read_array(2, 3).tolist() == [2, 3, 4]
        for row, rows in ((4, 2), (5, 1), (100, 1), (0, 6)):
            with pytest.raises(CorruptBufferError, match=rf"expected {rows} rows at row {row}, the file ends before"):
                writer.read(row, rows)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 60), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_scattered_rows_arrive_where_they_should(tmp_path_factory, rows, random):
    folder = tmp_path_factory.mktemp("scattered")
    with ColumnPair(folder, np.dtype("<i4"), (2,)) as (writer, reader):
        expected = np.arange(100, dtype="<i4").reshape(50, 2)
        writer.write(0, expected.tobytes())
        expected = np.concatenate((expected, np.zeros((20, 2), "<i4")))
        random.shuffle(rows)
        values = np.array([[-row - 1, -row - 1000] for row in rows], np.int64).reshape(len(rows), 2)
        given_rows, given_values = np.array(rows, np.int64), values.copy()
        writer.write_scattered(given_rows, given_values)
        expected[rows] = values
        writer.reserve(70)
        assert reader.view(70)[:61].tolist() == expected[:61].tolist()
        assert given_rows.tolist() == rows
        assert np.array_equal(given_values, values), "the caller's arrays stay as they are"


def test_neighbours_are_written_in_one_piece(tmp_path, monkeypatch):
    with ColumnPair(tmp_path) as (writer, _):
        writer.reserve(100)
        pieces = []
        monkeypatch.setattr(writer, "write", lambda row, data: pieces.append((row, len(data) // 8)))
        writer.write_scattered(np.array([7, 3, 4, 9, 5, 8, 50]), np.zeros(7))
        writer.write_scattered(np.empty(0, np.int64), np.empty(0))
        assert pieces == [(3, 3), (7, 3), (50, 1)]


# --- what is no column ---


def save(path, array):
    np.save(path, array, allow_pickle=True)


def header(descr="'<f8'", order="False", shape="(3,)", *, version=b"\x01\x00", tail=""):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}{tail}"
    text += " " * (117 - len(text)) + "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode("latin-1")


class Explosive:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


ROWS = np.arange(3.0).tobytes()
WRONG_FILES = {
    "empty": b"",
    "no magic": b"x" * 300,
    "text": b"hello\n",
    "cut in the header": header()[:50],
    "version 2": header(version=b"\x02\x00") + ROWS,
    "other dtype": header("'<f4'") + ROWS,
    "other endianness": header("'>f8'") + ROWS,
    "other shape": header(shape="(3, 1)") + ROWS,
    "no axis": header(shape="()") + ROWS,
    "column order": header(order="True") + ROWS,
    "negative": header(shape="(-3,)") + ROWS,
    "a float of rows": header(shape="(3.0,)") + ROWS,
    "a boolean of rows": header(shape="(True,)") + ROWS,
    "huge": header(shape=f"({1 << 63},)") + ROWS,
    "a list": header(shape="[3]") + ROWS,
    "a call": header(shape="(print(1),)") + ROWS,
    "no dict": b"\x93NUMPY\x01\x00\x02\x00[]" + ROWS,
    "nested": b"\x93NUMPY\x01\x00\xd0\x07" + b"(" * 2000,
    "a structure": header("[('a', '<f8')]") + ROWS,
    "objects": header("'|O'") + pickle.dumps([Explosive()] * 3),
    "unknown dtype": header("'<q9'") + ROWS,
    "strings": header("'<U2'") + ROWS,
    "header beyond the file": b"\x93NUMPY\x01\x00\xff\xff" + b" " * 200,
    "a pickle": pickle.dumps(Explosive()),
}


@pytest.mark.parametrize("content", WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_file_that_is_no_such_column_is_refused(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    for opening in (read_column, ColumnWriter.open):
        with pytest.raises(CorruptBufferError, match=r"x\.npy") as caught:
            opening(tmp_path, "x.npy", F8)
        assert isinstance(caught.value, ValueError)
    assert (tmp_path / "x.npy").read_bytes() == content
    assert_no_descriptor_left(tmp_path)


def assert_no_descriptor_left(folder):
    if os.path.isdir("/proc/self/fd"):
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            assert not target.startswith(f"{folder}/"), target


def test_a_header_that_promises_too_much_is_not_believed(tmp_path):
    (tmp_path / "x.npy").write_bytes(header(shape=f"({(1 << 62) - 1},)") + ROWS)
    reader = Column(tmp_path, "x.npy", F8)
    assert reader.view(3).tolist() == [0, 1, 2]
    with pytest.raises(CorruptBufferError, match="expected at least 4 rows, got 3"):
        reader.view(4)
    writer = ColumnWriter.open(tmp_path, "x.npy", F8)
    assert writer.capacity == 3
    writer.write(3, np.float64(3).tobytes())
    assert np.load(tmp_path / "x.npy", mmap_mode="r")[:4].tolist() == [0, 1, 2, 3]
    writer.close()


def test_a_file_of_numpy_itself_is_a_column(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    reader, writer = Column(tmp_path, "x.npy", F8, (2,)), ColumnWriter.open(tmp_path, "x.npy", F8, (2,))
    assert reader.view(3).tolist() == writer.read_array(0, 3).tolist() == [[0, 1], [2, 3], [4, 5]]
    writer.close()


def test_a_missing_file_is_named(tmp_path):
    for opening in (read_column, ColumnWriter.open):
        with pytest.raises(CorruptBufferError, match=r"x\.npy: the file is missing"):
            opening(tmp_path, "x.npy", F8)
    assert list(tmp_path.iterdir()) == []


# --- links ---


@pytest.fixture
def linked(tmp_path):
    """A folder full of links to a file and a folder outside of it."""
    folder, outside = tmp_path / "data", tmp_path / "outside"
    (folder / "steps").mkdir(parents=True)
    outside.mkdir()
    np.save(outside / "x.npy", np.arange(3.0))
    (folder / "link.npy").symlink_to(outside / "x.npy")
    (folder / "dangling.npy").symlink_to(outside / "new.npy")
    (folder / "deep").symlink_to(outside)
    (folder / "steps/deep").symlink_to(outside)
    (folder / "relative.npy").symlink_to("../outside/x.npy")
    (folder / "directory.npy").mkdir()
    (folder / "file").write_text("x")
    os.mkfifo(folder / "fifo.npy")
    return folder


LINKS = ["link.npy", "dangling.npy", "relative.npy", "deep/x.npy", "deep/new.npy", "steps/deep/x.npy", "directory.npy"]


@pytest.mark.parametrize("name", [*LINKS, "file/x.npy", "fifo.npy"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_TRUNC])
def test_nothing_is_opened_through_a_link(linked, name, flags):
    outside = linked.parent / "outside"
    before = (outside / "x.npy").read_bytes()
    with pytest.raises(CorruptBufferError, match="plain file"):
        open_beneath(linked, name, flags)
    assert [path.name for path in outside.iterdir()] == ["x.npy"]
    assert (outside / "x.npy").read_bytes() == before
    assert_no_descriptor_left(linked)


@pytest.mark.parametrize("name", LINKS)
def test_no_column_is_read_or_created_through_a_link(linked, name):
    outside = linked.parent / "outside"
    before = (outside / "x.npy").read_bytes()
    for opening in (read_column, ColumnWriter.open, ColumnWriter.create):
        with pytest.raises((CorruptBufferError, OSError)):
            opening(Directory(linked), name, F8)
    assert [path.name for path in outside.iterdir()] == ["x.npy"]
    assert (outside / "x.npy").read_bytes() == before


def test_a_folder_may_itself_be_reached_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    ColumnWriter.create(Directory(tmp_path / "link"), "steps/x.npy", F8).close()
    assert (tmp_path / "real/steps/x.npy").exists()


def test_a_missing_path_is_reported_as_missing(tmp_path):
    for name in ("x.npy", "a/b/x.npy"):
        with pytest.raises(FileNotFoundError):
            open_beneath(tmp_path, name, os.O_RDONLY)


def test_a_device_is_no_file(tmp_path):
    try:
        os.mknod(tmp_path / "null.npy", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.close(os.open(tmp_path / "null.npy", os.O_RDONLY))
    except OSError:
        pytest.skip("device nodes cannot be made here")
    with pytest.raises(CorruptBufferError, match="plain file"):
        open_beneath(tmp_path, "null.npy", os.O_RDONLY)
