"""Folders of memmap-replay-buffer: real ones where it is installed, the same files written here, and prepared ones."""

import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import open_episode
from interop_helpers import limited_memory

from gym_replay import (
    BufferNotFoundError,
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    NotABufferError,
    ReplayBuffer,
    UnsupportedFormatError,
    from_memmap_replay_buffer,
)

FIELDS = {"state": ("float", 2), "action": "int", "seen": ("uint8", (2, 2)), "done": ("bool", (), True)}
META = {"task": "int", "goal": ("float", (3,), 0.5)}
DTYPES = {"int": np.int32, "float": np.float32, "bool": np.bool_, "uint8": np.uint8}


class Old:
    """Writes the files that the package writes, as both of its versions do it; one episode is open at a time."""

    def __init__(self, folder, slots, steps, *, circular=False, fields=FIELDS, meta=META):
        folder.mkdir()
        self.folder, self.slots, self.circular = folder, slots, circular
        config = {"max_episodes": slots, "max_timesteps": steps, "fields": fields, "meta_fields": meta}
        (folder / "metadata.pkl").write_bytes(pickle.dumps({**config, "circular": circular}))
        whole = {**meta, "episode_lens": "int", "_initted": "bool"}
        self.data = {name: self._open(f"{name}.data", (slots, steps), info) for name, info in fields.items()}
        self.meta = {name: self._open(f"{name}.data.meta", (slots,), info) for name, info in whole.items()}
        states = ("num_episodes", "episode_index", "timestep_index")
        self.states = {name: self._open(f"{name}.state", (), "int") for name in states}

    def _open(self, name, lead, info):
        kind, shape = (info, ()) if isinstance(info, str) else info[:2]
        shape = (shape,) if isinstance(shape, int) else shape
        path = self.folder / f"{name}.npy"
        return np.lib.format.open_memmap(path, "w+", DTYPES[kind], (*lead, *shape))

    def store(self, number, length, *, close=True, count=1):
        at, done = int(self.states["episode_index"]), int(self.states["num_episodes"])
        for k in range(count):
            slot = (at + k) % self.slots
            for name, values in content(number + k, length).items():
                (self.data if name in self.data else self.meta)[name][slot, ...] = (
                    np.concatenate([values, self.data[name][slot, length:]]) if name in self.data else values
                )
            self.meta["episode_lens"][slot] = length
        if close:
            self.states["episode_index"][...] = (at + count) % self.slots
            self.states["num_episodes"][...] = min(done + count, self.slots)
            self.states["timestep_index"][...] = 0
        else:
            self.states["timestep_index"][...] = length


def content(number, length):
    steps = 10 * number + np.arange(length)
    return {
        "state": np.stack((steps, -steps), axis=1).astype(np.float32),
        "action": steps.astype(np.int32),
        "seen": np.repeat(steps.astype(np.uint8), 4).reshape(-1, 2, 2),
        "done": np.arange(length) == length - 1,
        "task": np.int32(number),
        "goal": np.full(3, number, np.float32),
    }


def assert_content(episode, number, length):
    for name, expected in content(number, length).items():
        found = episode.meta[name] if name in META else episode[name]
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9),
    circular=st.booleans(),
    running=st.one_of(st.just((0, 1)), st.tuples(st.integers(1, 5), st.integers(1, 2))),
)
def test_every_episode_that_is_left_in_the_order_it_was_stored(tmp_path_factory, lengths, circular, running):
    folder = tmp_path_factory.mktemp("old")
    slots = 4 if circular else len(lengths) + 2
    old = Old(folder / "a", slots, 6, circular=circular)
    for number, length in enumerate(lengths):
        old.store(number, length)
    open_steps, count = running
    if circular and len(lengths) >= slots - 1:
        count = 1  # more cannot be told from what was there before
    if open_steps:
        old.store(len(lengths), open_steps, close=False, count=count)
    alive = [*enumerate(lengths), *((len(lengths) + k, open_steps) for k in range(count) if open_steps)][-slots:]
    report = from_memmap_replay_buffer(folder / "a", folder / "b")
    with ReplayBuffer.from_folder(folder / "b") as buffer:
        assert report.num_episodes == len(buffer) == len(alive)
        for episode, (number, length) in zip(buffer, alive, strict=True):
            assert_content(episode, number, length)
            assert episode.complete == (number < len(lengths))
    assert any("how" in each and "ended" in each for each in report.not_known) == bool(open_steps)


def test_what_it_could_not_know(tmp_path):
    old = Old(tmp_path / "a", 3, 5)
    old.store(0, 4)
    old.store(1, 2)
    plain = from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert "which fields are observations" in plain.not_known[0]
    assert "terminated or were truncated" in plain.not_known[1]
    report = from_memmap_replay_buffer(tmp_path / "a", tmp_path / "c", state_fields=["state"])
    assert "the last observation of 2 episodes" in str(report)
    with ReplayBuffer.from_folder(tmp_path / "c") as buffer:
        assert buffer.metadata.fields["state"].state
        assert buffer.episode(0)["state"].shape == (4, 2)
        assert not buffer.episode(0).has_final
        loader = buffer.dataloader(10, n_steps=1)
        assert len(next(iter(loader))["state"]) == 4  # 3 of 4 and 1 of 2
    with pytest.raises(FieldError, match="state_fields"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "d", state_fields=["nothing"])
    assert not (tmp_path / "d").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _hand_made(code):
    return b"\x80\x04" + code + b"."


@pytest.mark.parametrize(
    "place", [lambda evil: evil, lambda evil: {"fields": evil}, lambda evil: {"max_episodes": [({1: evil},)]}]
)
def test_a_prepared_pickle_runs_nothing(tmp_path, place):
    Old(tmp_path / "a", 2, 2).store(0, 1)
    path = tmp_path / "a" / "metadata.pkl"
    made = tmp_path / "made"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(place(Evil(made)), protocol))
        with pytest.raises(CorruptBufferError, match="nothing of it was run"):
            from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
        assert not made.exists()
    pickle.loads(path.read_bytes())
    assert made.exists()  # the pickle is a working one
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        _hand_made(b"cbuiltins\nexec\n"),
        _hand_made(b"Ppersistent\n"),
        _hand_made(b"\x82\x01"),  # an extension code
        _hand_made(b"(" * 10),
        pickle.dumps(np.int64(3)),
        pickle.dumps([1, 2]),
        pickle.dumps({"max_episodes": 1}),
        b"\x80\x04" + b"]" * 2_000_000 + b".",
    ],
)
def test_other_pickles_are_refused(tmp_path, content):
    Old(tmp_path / "a", 2, 2).store(0, 1)
    (tmp_path / "a" / "metadata.pkl").write_bytes(content)
    with pytest.raises(CorruptBufferError):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_episodes": 10**30},
        {"max_episodes": True},
        {"max_timesteps": 0},
        {"fields": ["state"]},
        {"fields": {"../state": "float"}},
        {"fields": {"/etc/passwd": "float"}},
        {"fields": {3: "float"}},
        {"fields": {"state": "object"}},
        {"fields": {"state": ("float", (2,), 0.0, 1)}},
        {"fields": {"state": ("float", (-2,))}},
        {"fields": {"state": ("float", 3)}},
        {"fields": {"absent": "float"}},
        {"fields": {"state": ["float", [2], "x"]}},
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change):
    Old(tmp_path / "a", 2, 2).store(0, 1)
    path = tmp_path / "a" / "metadata.pkl"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | change))
    with pytest.raises(CorruptBufferError):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_files_that_do_not_fit_are_refused(tmp_path):
    old = Old(tmp_path / "a", 2, 2)
    old.store(0, 1)
    lengths = tmp_path / "a" / "episode_lens.data.meta.npy"
    np.save(lengths, np.array([3, 0], np.int32))
    with pytest.raises(CorruptBufferError, match="no such length"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    np.save(lengths, np.array([None, 0]))
    with pytest.raises(CorruptBufferError, match="Python objects"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    lengths.unlink()
    with pytest.raises(CorruptBufferError, match="missing"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "replay_buffer.h5").touch()
    with pytest.raises(UnsupportedFormatError, match="HDF5 backend"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    with pytest.raises(BufferNotFoundError):
        from_memmap_replay_buffer(tmp_path, tmp_path / "b")


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    old = Old(tmp_path / "a", 3, 5)
    with pytest.raises(EmptyBufferError):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    old.store(0, 4)
    old.store(1, 2)

    whole, stored = open_episode.store_whole, []

    def fail(*arguments, **options):
        whole(*arguments, **options)
        stored.append(1)
        if len(stored) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(open_episode, "store_whole", fail)
    with pytest.raises(KeyboardInterrupt):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]
    monkeypatch.undo()
    (tmp_path / "b").mkdir()
    from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")  # an empty folder will do
    with pytest.raises(NotABufferError):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    (tmp_path / "c").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotABufferError):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "c")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("circular", [False, True])
def test_a_folder_that_the_package_wrote(tmp_path, circular):
    package = pytest.importorskip("memmap_replay_buffer")
    old = package.ReplayBuffer(
        tmp_path / "a", max_episodes=4, max_timesteps=6, fields=FIELDS, meta_fields=META, circular=circular
    )
    lengths = [3, 6, 1] + ([2, 4, 5] if circular else [])
    for number, length in enumerate(lengths):
        values = content(number, length)
        meta = {name: values.pop(name) for name in META}
        with old.one_episode():
            for t in range(length):
                old.store(**{name: array[t] for name, array in values.items()})
            for name, value in meta.items():
                old.store_meta_datapoint(old.episode_index, name, value)
    running = content(9, 2)
    for t in range(2):
        old.store(**{name: running[name][t] for name in FIELDS})
    old.flush()
    report = from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b", state_fields=["state"])
    alive = list(enumerate(lengths))[-3:]
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert report.num_episodes == len(buffer) == 4
        for episode, (number, length) in zip(buffer, alive, strict=False):
            assert_content(episode, number, length)
            assert episode.complete
        last = buffer.episode(-1)
        assert not last.complete
        np.testing.assert_array_equal(last["action"], running["action"])


BILLION = b"](K\x00eq\x00" + b"".join(b"](h%ch%ceq%c" % (k, k, k + 1) for k in range(60)) + b"."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\x0f.",  # nine bytes that remember a value at place 268 million
        b"Np4000000000\n.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 34) + b"N.",  # a frame
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b"a.",  # a bytearray
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 34) + b"a.",  # bytes
        b"]q\x00h\x00a.",  # a list of itself
        b"\x80\x02" + BILLION,
        b"\x80\x02}" + b"\x88" + b"\x85" * 900_000 + b"Ns.",  # a key of so many tuples in one another
        pickle.dumps(list(range(100_000))),
    ],
)
def test_a_pickle_that_asks_for_more_than_it_is_is_refused_at_once(tmp_path, content):
    Old(tmp_path / "a", 2, 2).store(0, 1)
    (tmp_path / "a" / "metadata.pkl").write_bytes(content)
    with limited_memory(512 << 20), pytest.raises(CorruptBufferError, match="plain values only"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("where", ["fields", "meta_fields"])
def test_a_default_is_not_made_in_a_shape_that_no_file_has(tmp_path, where):
    Old(tmp_path / "a", 2, 2).store(0, 1)
    path = tmp_path / "a" / "metadata.pkl"
    name = {"fields": "state", "meta_fields": "goal"}[where]
    config = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**config, where: {**config[where], name: ("float", (1 << 40,), 1.0)}}))
    with limited_memory(512 << 20), pytest.raises(CorruptBufferError, match=r"expected float32 of shape"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")


def test_lengths_of_far_more_slots_than_there_are(tmp_path):
    """A file with a hole is as long as it says; its lengths are looked at in pieces."""
    old = Old(tmp_path / "a", 1 << 25, 1, fields={"x": "bool"}, meta={})
    old.meta["episode_lens"][3] = 1
    with limited_memory(280 << 20):  # the files themselves are mapped: 160 MiB
        report = from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert report.num_episodes == 1


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_flag_inside_an_episode_is_refused(tmp_path, flag, shape):
    old = Old(tmp_path / "a", 3, 5, fields={"x": "float", flag: ("bool", shape)}, meta={})
    old.meta["episode_lens"][:2] = 3
    old.data[flag][0, 2] = old.data[flag][1, 1] = True
    old.states["episode_index"][...] = old.states["num_episodes"][...] = 2
    with pytest.raises(FieldError, match=f"the episode in slot 1: '{flag}' is set at step 1 of 3"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    old.data[flag][1, 1] = False
    assert from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b").num_episodes == 2
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.metadata.fields[flag].shape == ()
        assert buffer.episode(0)[flag].tolist() == [False, False, True]


def test_one_number_a_step_is_a_single_number(tmp_path):
    fields = {"reward": ("float", (1,), 0.5), "action": ("int", (1,)), "x": ("float", (1,), 2.0)}
    old = Old(tmp_path / "a", 3, 5, fields=fields, meta={})
    old.meta["episode_lens"][0] = 2
    old.data["reward"][0, :2, 0], old.data["action"][0, :2, 0] = [1.5, 2.5], [3, 4]
    old.states["episode_index"][...] = old.states["num_episodes"][...] = 1
    from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.episode(0)["reward"].tolist() == [1.5, 2.5]
        assert buffer.episode(0)["action"].tolist() == [3, 4]
        assert buffer.episode(0)["x"].shape == (2, 1)  # of which nothing is known
        assert float(buffer.metadata.fields["reward"].default) == 0.5


def test_what_the_configuration_does_not_name_is_reported(tmp_path):
    old = Old(tmp_path / "a", 3, 5)
    old.store(0, 2)
    np.save(tmp_path / "a" / "more.data.npy", np.zeros((3, 5)))
    report = from_memmap_replay_buffer(tmp_path / "a", tmp_path / "b")
    assert report.left_out == ("more.data.npy: it is not in metadata.pkl",)
    path = tmp_path / "a" / "metadata.pkl"
    config = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**config, "meta_fields": {"action": "int"}}))
    with pytest.raises(CorruptBufferError, match="'action' is a field and a meta field"):
        from_memmap_replay_buffer(tmp_path / "a", tmp_path / "c")
