"""Imports of Minari datasets that were not exported from here: what becomes what, and what is refused."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium import spaces
from interop.interop_helpers import limited_memory
from interop.minari_helpers import Playing, assert_same_buffer, record, same

from gym_replay import (
    BufferNotFoundError,
    CorruptBufferError,
    EmptyBufferError,
    Field,
    FieldError,
    NotABufferError,
    RecordToBuffer,
    ReplayBuffer,
    UnsupportedFormatError,
    UnsupportedSpaceError,
    check_buffer,
    export_minari,
    import_minari,
)

minari = pytest.importorskip("minari")

SPACE = spaces.Box(-9, 9, (2,), np.float32)
VALUES = [np.full(2, t, np.float32) for t in range(6)]


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def episode(length, **changes):
    """An episode as Minari takes it."""
    content = {
        "observations": np.arange(2.0 * (length + 1), dtype=np.float32).reshape(-1, 2),
        "actions": np.arange(length) % 5,
        "rewards": np.arange(length) / 3,
        "terminations": np.arange(length) == length - 1,
        "truncations": np.zeros(length, bool),
        "infos": {},
    }
    return minari.data_collector.EpisodeBuffer(**{**content, **changes})


def create(dataset_id, episodes, data_format="hdf5", metadata=None, **changes):
    """A dataset that Minari made."""
    arguments = {"observation_space": SPACE, "action_space": spaces.Discrete(5), "jpeg_encoding": False, **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author and so on, none of which is given
        dataset = minari.create_dataset_from_buffers(dataset_id, episodes, data_format=data_format, **arguments)
    if metadata is not None:
        dataset.storage.update_episode_metadata(metadata)
    return dataset


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_what_becomes_what(tmp_path, data_format):
    create("x-v0", [episode(2, seed=5), episode(3, options={"k": [1, 2]})], data_format)
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.meta_fieldnames == buffer.metadata.recorder_meta  # none of the user's own
        assert buffer.fieldnames == ("observation", "action", "reward", "terminated", "truncated")
        assert buffer.observation_space == SPACE
        first, second = buffer
        assert same(np.array(first["observation"]), np.arange(6, dtype="f4").reshape(3, 2))
        assert (first["action"].tolist(), first["terminated"].tolist()) == ([0, 1], [False, True])
        assert first["reward"].dtype == np.float64
        assert [e.meta["episode_seed"] for e in buffer] == [5, -1]
        assert [e.meta["episode_options"] for e in buffer] == ["", '{"k": [1, 2]}']
        assert second.meta["episode_return"] == np.cumsum([0, 1 / 3, 2 / 3])[-1]
        assert json.loads(second.meta["episode_run"])["imported"] == {"dataset_id": "x-v0", "id": 1}
        assert first.complete
        assert first.has_final
    assert check_buffer(tmp_path / "b", progress=False).ok


def test_dtypes_that_are_not_those_of_the_spaces(tmp_path):
    doubles = np.array([[1 / 3, 2], [3, 4], [5, 6]])
    create(
        "x-v0",
        [episode(2, observations=doubles, actions=np.array([1, 2], "u1"), rewards=np.array([1, 2], "f4"))],
    )
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert same(np.array(buffer.episode(0)["observation"]), doubles)
        assert buffer.episode(0)["action"].dtype == np.uint8
        assert same(np.array(buffer.episode(0)["reward"]), np.array([1.0, 2.0]))


def test_values_that_would_change_are_refused(tmp_path):
    create("x-v0", [episode(2), episode(2, observations=np.full((3, 2), 1 / 3))])
    with pytest.raises(FieldError, match=r"episode 1: observation: float64 values do not fit float32"):
        import_minari("x-v0", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_infos(tmp_path, data_format):
    infos = {"a": {"b/c" if data_format == "arrow" else "bc": [1.5, 2.5, 3.5]}, "n": np.arange(12.0).reshape(3, 2, 2)}
    create("x-v0", [episode(2, infos={}), episode(2, infos=infos)][:: 1 if data_format == "hdf5" else -1], data_format)
    at = 1 if data_format == "hdf5" else 0
    with import_minari("x-v0", tmp_path / "b") as buffer:
        name = "info.a.b%2Fc" if data_format == "arrow" else "info.a.bc"
        assert buffer.episode(at)[name].tolist() == [1.5, 2.5, 3.5]
        assert same(np.array(buffer.episode(at)["info.n"]), infos["n"])
        assert buffer.episode(at)["info_present.n"].all()
        assert not buffer.episode(1 - at)["info_present.n"].any()


def test_infos_of_the_steps_alone(tmp_path):
    create("x-v0", [episode(2, infos={"x": [1, 2]})])
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.episode(0)["info.x"].tolist() == [0, 1, 2]
        assert buffer.episode(0)["info_present.x"].tolist() == [False, True, True]


def test_infos_that_no_buffer_holds(tmp_path):
    create("x-v0", [episode(2, infos={"said": ["a", "b", "c"], "x": [1, 2, 3]})])
    with pytest.raises(FieldError, match=r"info\.said: expected numbers.*'drop'"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=r"x-v0: left out:\n  info\.said"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert "info.x" in buffer.fieldnames
    assert "info.said" not in buffer.fieldnames
    buffer.close()
    create("x-v1", [episode(2, infos={"x": [1, 2, 3, 4]})])
    with pytest.raises(CorruptBufferError, match=r"info\.x: expected 3 rows, got 4"):
        import_minari("x-v1", tmp_path / "c")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_metadata(tmp_path, data_format):
    metadata = [
        {"success": True, "score": 1.5, "task": "a", "pose": np.arange(3), "count": 3, "now and then": 2.0},
        {"success": False, "score": 2.5, "task": "b", "pose": np.arange(3), "count": 4},
    ]
    create("x-v0", [episode(2), episode(3)], data_format, metadata)
    with import_minari("x-v0", tmp_path / "b") as buffer:
        for number, expected in enumerate(metadata):
            found = buffer.episode(number).meta
            assert all(np.array_equal(found[name], value) for name, value in expected.items())
        assert np.isnan(buffer.episode(1).meta["now and then"])
        assert buffer.metadata.meta_fields["success"].dtype == bool
        again = export_minari(buffer, "x-v1", data_format=data_format)
        for mine, theirs in zip(again.storage.get_episode_metadata(range(2)), metadata, strict=True):
            assert all(np.array_equal(mine[name], value) for name, value in theirs.items())


def test_metadata_that_no_buffer_holds(tmp_path):
    create("x-v0", [episode(2), episode(2)], metadata=[{"mixed": 1}, {"mixed": "one"}])
    with pytest.raises(FieldError, match="metadata 'mixed'"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match="metadata 'mixed'"):
        assert "mixed" not in import_minari("x-v0", tmp_path / "b", on_unsupported="drop").meta_fieldnames


def test_infos_beside_no_observation(tmp_path):
    nothing = {"observations": {}, "infos": {"x": [1, 2, 3]}}
    create("x-v0", [episode(2, **nothing)], observation_space=spaces.Dict({}))
    with pytest.raises(FieldError, match=r"info\.x: there are no observations"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=r"info\.x"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert buffer.fieldnames == ("action", "reward", "terminated", "truncated")
    assert buffer.episode(0)["action"].tolist() == [0, 1]


def test_names_that_differ_in_case_only(tmp_path):
    create("x-v0", [episode(1, infos={"x": [1, 2], "X": [3, 4]})], metadata=[{"y": 1, "Y": 2}])
    with pytest.raises(FieldError, match="differ in case only"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match="(?s)metadata '[yY]': .*differ in case only.*fields 'info"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert (
        len([name for name in (*buffer.fieldnames, *buffer.meta_fieldnames) if name in ("info.x", "info.X", "y", "Y")])
        == 2
    )


def test_a_missing_last_observation(tmp_path):
    create("x-v0", [episode(2, observations=np.ones((2, 2), "f4"), infos={"x": [1, 2, 3]}), episode(2)])
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert [e.has_final for e in buffer] == [False, True]
        assert [len(e["observation"]) for e in buffer] == [2, 3]
        assert buffer.episode(0)["info.x"].tolist() == [1, 2]


def test_an_episode_without_an_end(tmp_path):
    create("x-v0", [episode(2, terminations=np.zeros(2, bool))])
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert not buffer.episode(0).complete
        assert not buffer.episode(0)["truncated"].any()


def test_part_of_a_dataset(tmp_path):
    dataset = create("x-v0", [episode(n) for n in range(1, 5)])
    some = dataset.filter_episodes(lambda e: len(e.rewards) % 2 == 0)
    with import_minari(some, tmp_path / "b") as buffer:
        assert buffer.episode_lens.tolist() == [2, 4]
        assert [json.loads(e.meta["episode_run"])["imported"]["id"] for e in buffer] == [1, 3]


def test_what_minari_added_to_an_export(tmp_path):
    exported = record(tmp_path / "a", Playing(SPACE, VALUES), [(1, 0, 1)], extra_fields={"value": "float"})
    dataset = export_minari(exported, "x-v0")
    dataset.storage.update_episodes([episode(3, seed=9)])
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.episode_lens.tolist() == [2, 3]
        assert [e.meta["episode_seed"] for e in buffer] == [1, 9]
        assert buffer.episode(1)["value"].tolist() == [0, 0, 0]
    minari.combine_datasets([dataset, dataset], "both-v0")
    with import_minari(
        "both-v0", tmp_path / "c"
    ) as buffer:  # of which Minari keeps neither seeds nor the export's notes
        assert buffer.episode_lens.tolist() == [2, 3, 2, 3]
        assert [e.meta["episode_seed"] for e in buffer] == [-1] * 4
        assert same(np.array(buffer.episode(2)["info.gym_replay.value"]), np.zeros(3, np.float32))
        with pytest.raises(FieldError, match=r"'info\.gym_replay\.value': .*'gym_replay' of the infos is taken"):
            export_minari(buffer, "again-v0")
        with pytest.warns(UserWarning, match=r"info\.gym_replay\.value"):
            assert export_minari(buffer, "again-v0", on_unsupported="drop")[2].infos == {}


def test_a_folder_that_is_there_is_refused(tmp_path):
    create("x-v0", [episode(2)])
    (tmp_path / "empty").mkdir()
    import_minari("x-v0", tmp_path / "empty").close()
    for taken in (tmp_path / "empty", tmp_path / "file"):
        if not taken.exists():
            taken.write_text("")
        with pytest.raises(NotABufferError, match="something here already; choose a folder that does not exist"):
            import_minari("x-v0", taken)


def test_nothing_is_left_of_an_import_that_failed(tmp_path, monkeypatch):
    create("x-v0", [episode(2), episode(2)])
    real, seen = ReplayBuffer.put_episode, []

    def put(self, arrays, *, complete=True):
        seen.append((tmp_path / "deep" / "b").exists())
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(self, arrays, complete=complete)

    monkeypatch.setattr(ReplayBuffer, "put_episode", put)
    with pytest.raises(KeyboardInterrupt):
        import_minari("x-v0", tmp_path / "deep" / "b")
    assert seen == [False, False]
    assert list((tmp_path / "deep").iterdir()) == []


def test_datasets_that_are_not_there(tmp_path):
    with pytest.raises(BufferNotFoundError, match=r"no Minari dataset 'x-v0' here; minari\.download_dataset"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.raises(FieldError, match="MinariDataset, got int"):
        import_minari(3, tmp_path / "b")
    with pytest.raises(FieldError, match="dataset id"):
        import_minari("../x", tmp_path / "b")


def change_metadata(datasets, dataset_id, change):
    path = datasets / dataset_id / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))


def test_datasets_of_other_versions_of_minari(tmp_path, datasets):
    create("x-v0", [episode(2)])
    change_metadata(datasets, "x-v0", lambda metadata: metadata.update(minari_version="0.1.0"))
    with pytest.raises(UnsupportedFormatError, match=r"0\.1\.0"):
        import_minari("x-v0", tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own.clear(),
        lambda own: own.update(fields=[]),
        lambda own: own["fields"][0].update(dtype="bool"),
        lambda own: own["fields"][0].update(shape=[3]),
        lambda own: own["fields"][0].update(name="other"),
        lambda own: own["fields"].pop(),
        lambda own: own["meta_fields"][0].update(dtype="bool"),
        lambda own: own.update(environment=3),
    ],
)
def test_what_an_export_noted_is_not_trusted(tmp_path, datasets, change):
    export_minari(record(tmp_path / "a", Playing(SPACE, VALUES), [(7, 0, 1)]), "x-v0")
    change_metadata(datasets, "x-v0", lambda metadata: change(metadata["gym_replay"]))
    with pytest.raises((CorruptBufferError, FieldError)):
        import_minari("x-v0", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"complete": 1, "exact": {}}', '{"complete": true, "exact": {"episode_seed": "00"}}']
)
def test_what_an_export_noted_of_an_episode_is_not_trusted(tmp_path, text):
    dataset = export_minari(record(tmp_path / "a", Playing(SPACE, VALUES), [(7, 0, 1)]), "x-v0")
    dataset.storage.update_episode_metadata([{"gym_replay": text}])
    with pytest.raises(CorruptBufferError):
        import_minari("x-v0", tmp_path / "b")


def test_an_imported_export_is_appended_to(tmp_path):
    env = Playing(SPACE, VALUES)
    original = record(tmp_path / "a", env, [(1, 0, 1)], extra_fields={"value": "float"}, meta_fields={"task": "str"})
    export_minari(original, "x-v0")
    import_minari("x-v0", tmp_path / "b").close()
    more = record(tmp_path / "b", env, [(2, 0)], extra_fields={"value": "float"}, meta_fields={"task": "str"})
    assert more.episode_lens.tolist() == [2, 1]
    export_minari(more, "x-v1")
    with import_minari("x-v1", tmp_path / "c") as back:
        assert_same_buffer(more, back)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_more_episodes_than_are_written_at_a_time(tmp_path, data_format):
    fields = dict.fromkeys(("terminated", "truncated"), "bool") | {"action": "int", "reward": "float"}
    with ReplayBuffer(
        tmp_path / "a", fields={**fields, "observation": Field("float", state=True)}, meta_fields={"number": "int"}
    ) as buffer:
        for number in range(230):
            length = 1 + number % 3
            observation = np.arange(length + (number not in (50, 150)), dtype=np.float32)
            buffer.store_episode(observation=observation, action=np.full(length, number), number=number)
        with pytest.warns(UserWarning, match="(?s)episode 50: .*episode 150: "):
            dataset = export_minari(buffer, "x-v0", data_format=data_format, on_unsupported="drop")
        expected = [number for number in range(230) if number not in (50, 150)]
        assert (dataset.total_episodes, dataset.total_steps) == (228, sum(1 + n % 3 for n in expected))
        assert [int(m["id"]) for m in dataset.storage.get_episode_metadata(range(228))] == list(range(228))
        with import_minari("x-v0", tmp_path / "b") as back:
            assert [int(e.meta["number"]) for e in back] == [int(e["action"][0]) for e in back] == expected


PEAK = """
import sys, threading
sys.path.insert(0, {tests!r})
from interop.test_minari_import import *

def anonymous():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024

import minari.dataset._storages.{module}, pyarrow.dataset
import_minari, export_minari
before, peak, done = anonymous(), [0.0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous() - before)
thread = threading.Thread(target=watch, daemon=True)
thread.start()
{code}
done.set()
thread.join()
print(peak[0])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is measured with /proc")
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_memory_is_that_of_a_few_episodes(tmp_path, data_format):
    """160 MiB in episodes of 4 MiB go through within 100 MiB."""
    frame = spaces.Box(0, 255, (256, 256), np.uint8)
    env = RecordToBuffer(Playing(frame, [np.full((256, 256), n, np.uint8) for n in range(64)]), tmp_path / "a")
    for number in range(40):
        env.reset(seed=number)
        for _ in range(63):
            env.step(np.int64(0))
    env.close()
    tests = os.path.dirname(os.path.dirname(__file__))
    steps = {
        "export": f"export_minari({str(tmp_path / 'a')!r}, 'x-v0', data_format={data_format!r}, progress=False)",
        "import": f"import_minari('x-v0', {str(tmp_path / 'b')!r}, progress=False)",
    }
    for name, code in steps.items():
        script = PEAK.format(tests=tests, module=f"{data_format}_storage", code=code)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) < 100, name
    with ReplayBuffer.from_folder(tmp_path / "b", read_only=True) as back:
        assert_same_buffer(env.buffer, back)


# --- axes of one, flags, contradictions ---


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_values_that_came_with_an_axis_of_one(tmp_path, data_format):
    column = np.arange(3)[:, None]
    create("x-v0", [episode(3, actions=column, rewards=column / 2.0), episode(3)], data_format)
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.metadata.fields["action"].shape == buffer.metadata.fields["reward"].shape == ()
        assert buffer.episode(0)["action"].tolist() == [0, 1, 2]
        assert buffer.episode(0)["reward"].tolist() == [0, 0.5, 1]


def test_values_in_other_axes_of_one_than_their_space(tmp_path):
    flat, deep = spaces.Box(-9, 9, (), np.float32), spaces.Box(-9, 9, (1, 1), np.float32)
    both = spaces.Dict({"flat": flat, "deep": deep, "count": spaces.Discrete(5)})
    values = {"flat": np.ones((3, 1), "f4"), "deep": np.ones(3, "f4"), "count": np.array([[0], [1], [2]])}
    flags = {"terminations": np.array([[0], [1]], bool), "truncations": np.zeros((2, 1), bool)}
    create("x-v0", [episode(2, observations=values, **flags)], observation_space=both)
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert [buffer.episode(0)[f"observation.{name}"].shape for name in values] == [(3,), (3, 1, 1), (3,)]
        assert buffer.episode(0)["terminated"].tolist() == [False, True]


BAD = {
    "a flag inside": ({"terminations": np.array([1, 0, 1], bool)}, "'terminated' is set at step 0 of 3"),
    "a flag of two": ({"truncations": np.array([0, 0, 2])}, "expected booleans, or 0 and 1, got 2 at row 2"),
    "more actions": ({"actions": np.zeros(4, int)}, "differ in length"),
    "more observations": ({"observations": np.zeros((6, 2), "f4")}, "differ in length"),
    "another shape": ({"observations": np.zeros((4, 3), "f4")}, r"expected numbers of shape \(2,\)"),
    "another dtype": ({"observations": np.full((4, 2), 1 / 3)}, "float64 values do not fit float32"),
    "rewards of several": ({"rewards": np.zeros((3, 2))}, r"reward: expected shape \(\)"),
    "texts as rewards": ({"rewards": np.array([b"a", b"b", b"c"])}, "rewards: expected numbers"),
}


@pytest.mark.parametrize("bad", BAD)
def test_an_episode_that_cannot_be_held_is_an_error_or_left_out(tmp_path, bad):
    change, message = BAD[bad]
    create("x-v0", [episode(3), episode(3, **change), episode(2)])
    with pytest.raises((FieldError, CorruptBufferError), match=rf"episode 1: .*{message}.*'drop' leaves it out"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=rf"left out:\n  episode 1: .*{message}"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert buffer.episode_lens.tolist() == [3, 2]
    buffer.close()


INFOS = {
    "another shape": (np.zeros((3, 2)), r"info\.x: expected shape \(\)"),
    "another dtype": (np.full(3, (1 << 63) + 1, np.uint64), "uint64 values do not fit int64"),
    "other rows": (np.zeros(7, int), "expected 3 rows, got 7"),
    "texts": (["a", "b", "c"], "expected numbers"),
    "one of an episode": (3, "one entry for each step"),
    "complex numbers": (np.zeros(3, complex), "expected numbers"),
}


@pytest.mark.parametrize("odd", INFOS)
def test_an_info_that_cannot_be_held_is_an_error_or_left_out(tmp_path, odd):
    value, message = INFOS[odd]
    whole = {"x": np.arange(3), "y": np.ones(3)}
    create("x-v0", [episode(2, infos=whole), episode(2, infos=whole | {"x": value})])
    with pytest.raises((FieldError, CorruptBufferError), match=f"episode 1: .*{message}.*'drop' leaves it out"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=message):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert buffer.episode(0)["info.x"].tolist() == [0, 1, 2]
    assert [bool(e["info_present.x"].any()) for e in buffer] == [True, False]
    assert [bool(e["info_present.y"].all()) for e in buffer] == [True, True]
    buffer.close()


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [
        ([0, 1, 2], [0.5, 1.0, np.nan], "float64"),
        ([True, False, True], [3, 4, 5], "int64"),
        ([1, 2, 3], [4, 5, 6], "int64"),
    ],
)
def test_an_info_that_needs_a_wider_dtype(tmp_path, first, second, dtype):
    create("x-v0", [episode(2, infos={"x": np.array(first)}), episode(2, infos={"x": np.array(second)})])
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.metadata.fields["info.x"].dtype == dtype
        np.testing.assert_array_equal(buffer.episode(0)["info.x"], first)
        np.testing.assert_array_equal(buffer.episode(1)["info.x"], second)


def test_infos_that_minari_itself_cannot_read(tmp_path):
    infos = {"uneven": [[1], [1, 2], [3]], "said": ["x", None, "z"], "x": np.arange(3.0), "y": np.ones((3, 1))}
    create("x-v0", [episode(2, infos=infos)], "arrow")
    with pytest.raises(FieldError, match=r"info\.(said|uneven)"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=r"info\.uneven(.|\n)*info\.said"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert buffer.episode(0)["info.x"].tolist() == [0, 1, 2]
    assert buffer.episode(0)["info.y"].tolist() == [[1], [1], [1]]
    assert same(np.array(buffer.episode(0)["observation"]), np.arange(6, dtype="f4").reshape(3, 2))
    buffer.close()


def test_a_space_that_no_buffer_holds(tmp_path, datasets):
    nested = spaces.Dict({"a": SPACE, "b": SPACE})
    values = {"a": np.ones((3, 2), "f4"), "b": np.ones((3, 2), "f4")}
    create("x-v0", [episode(2, observations=values)], observation_space=nested)
    create("x-v1", [episode(2)])
    huge = {"type": "MultiBinary", "n": 1 << 40}

    def change(metadata, part):
        space = json.loads(metadata["observation_space"])
        space = {**space, "subspaces": {**space["subspaces"], "b": huge}} if part else huge
        metadata["observation_space"] = json.dumps(space)

    change_metadata(datasets, "x-v0", lambda metadata: change(metadata, True))
    change_metadata(datasets, "x-v1", lambda metadata: change(metadata, False))
    for dataset_id, fields in (("x-v0", ("observation.a",)), ("x-v1", ())):
        with pytest.raises(UnsupportedSpaceError, match=r"observation.*'drop' leaves it out"):
            import_minari(dataset_id, tmp_path / dataset_id)
        with pytest.warns(UserWarning, match="left out:\n  observation"):
            buffer = import_minari(dataset_id, tmp_path / dataset_id, on_unsupported="drop")
        assert buffer.fieldnames == (*fields, "action", "reward", "terminated", "truncated")
        assert buffer.episode(0)["action"].tolist() == [0, 1]
        buffer.close()


def test_none_that_can_be_held(tmp_path):
    create("x-v0", [episode(2, terminations=np.array([1, 0], bool))])
    with pytest.raises(EmptyBufferError, match="none of the episodes:\n  episode 0: 'terminated'"):
        import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert not (tmp_path / "b").exists()


# --- metadata that want one name, or are compared across dtypes ---


def test_metadata_of_one_name(tmp_path):
    mine = {"a/b": 1, "a": {"b": 2}, "reward": 3, "minari": {"reward": 4}}
    create("x-v0", [episode(2), episode(2)], "arrow", [mine, mine])
    with pytest.raises(FieldError, match=r"its name 'minari\.reward' is that of another entry"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match=r"minari\.reward"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    meta = buffer.episode(1).meta
    assert (meta["a%2Fb"], meta["a.b"]) == (1, 2)
    assert meta["minari.reward"] in (3, 4)
    buffer.close()


@pytest.mark.parametrize("large", [np.uint64((1 << 63) + 5), np.uint64((1 << 64) - 1)])
def test_metadata_that_a_common_dtype_would_change(tmp_path, large):
    create("x-v0", [episode(2), episode(2)], metadata=[{"n": np.int64(-1)}, {"n": large}])
    with pytest.raises(CorruptBufferError, match=f"meta field 'n': .*{large}.* is no float64"):
        import_minari("x-v0", tmp_path / "b")
    with pytest.warns(UserWarning, match="meta field 'n'"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert buffer.episode(0).meta["n"] == -1
    assert np.isnan(buffer.episode(1).meta["n"])
    buffer.close()


# --- sizes that a dataset claims ---


def box(**changes):
    space = {"type": "Box", "dtype": "float32", "shape": [2], "low": [0, 0], "high": [1, 1]}
    return {"observation_space": json.dumps(space | changes)}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize(
    "claim",
    [
        {"total_episodes": 10**12},
        {"total_episodes": "many"},
        {"total_episodes": -1},
        box(shape=[10**11], low=0, high=1),
        box(shape=[10**11]),
    ],
)
def test_what_a_dataset_claims_is_not_believed(tmp_path, datasets, data_format, claim):
    create("x-v0", [episode(2)], data_format)
    change_metadata(datasets, "x-v0", lambda metadata: metadata.update(claim))
    with limited_memory(1 << 30), pytest.raises(CorruptBufferError, match=r"total_episodes|bounds of a Box"):
        import_minari("x-v0", tmp_path / "b")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "{}"])
def test_metadata_that_are_none(tmp_path, datasets, text):
    create("x-v0", [episode(2)])
    (datasets / "x-v0" / "data" / "metadata.json").write_text(text)
    with pytest.raises((UnsupportedFormatError, CorruptBufferError), match="x-v0"):
        import_minari("x-v0", tmp_path / "b")


def test_an_hdf5_file_of_minari_is_not_believed(tmp_path, datasets):
    import h5py

    def claims(group):
        group.create_dataset("rewards", (10**12,), "f8", chunks=(10,))

    def links(group):
        group["rewards"] = h5py.ExternalLink("/etc/passwd", "/rewards")

    def lacks(group):
        pass

    for number, (change, message) in enumerate(
        [(claims, "claims to hold"), (links, "rewards is a link"), (lacks, "Minari cannot read it: KeyError")]
    ):
        create(f"x-v{number}", [episode(2), episode(2), episode(2)])
        with h5py.File(datasets / f"x-v{number}" / "data" / "main_data.hdf5", "a") as file:
            del file["episode_1/rewards"]
            change(file["episode_1"])
        with pytest.raises(CorruptBufferError, match=f"episode 1: .*{message}"):
            import_minari(f"x-v{number}", tmp_path / "b")
        with pytest.warns(UserWarning, match=f"episode 1: .*{message}"):
            buffer = import_minari(f"x-v{number}", tmp_path / f"b{number}", on_unsupported="drop")
        assert len(buffer) == 2
        buffer.close()


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("version", ["0.5.0", "0.5.1", "0.5.2"])
def test_images_of_versions_that_did_not_note_how_they_store_them(tmp_path, datasets, data_format, version):
    """Up to 0.5.2 Minari stored images as they are, which 0.5.4 takes for JPEG."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    create(
        "x-v0", [episode(2, observations=images), episode(2, observations=images)], data_format, observation_space=space
    )

    def change(metadata):
        del metadata["jpeg_encoding"]
        metadata["minari_version"] = version

    change_metadata(datasets, "x-v0", change)
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert [same(np.array(e["observation"]), images) for e in buffer] == [True, True]
    chosen = minari.MinariDataset(minari.load_dataset("x-v0").storage, episode_indices=np.array([1]))
    with import_minari(chosen, tmp_path / "c") as buffer:
        assert json.loads(buffer.episode(0).meta["episode_run"])["imported"]["id"] == 1
        assert same(np.array(buffer.episode(0)["observation"]), images)


@pytest.mark.parametrize(
    "key", ["info/x", "info/X", "info_present/x", "observation/x", "observation", "reward", "terminated/x"]
)
def test_metadata_with_the_name_of_a_field(tmp_path, key):
    values = {"x": np.ones((3, 2), "f4")}
    create(
        "x-v0",
        [episode(2, observations=values, infos={"x": np.arange(3)})],
        metadata=[{key: 7}],
        observation_space=spaces.Dict({"x": SPACE}),
    )
    with import_minari("x-v0", tmp_path / "b") as buffer:
        assert buffer.episode(0).meta[f"minari.{key.replace('/', '.')}"] == 7
        assert buffer.episode(0)["info.x"].tolist() == [0, 1, 2]
        assert same(np.array(buffer.episode(0)["observation.x"]), values["x"])


def test_an_info_that_never_fits_leaves_no_field(tmp_path):
    create("x-v0", [episode(2, infos={"x": np.zeros(7), "y": np.zeros(3)})])
    with pytest.warns(UserWarning, match=r"info\.x: expected 3 rows, got 7"):
        buffer = import_minari("x-v0", tmp_path / "b", on_unsupported="drop")
    assert [name for name in buffer.fieldnames if name.startswith("info")] == ["info.y", "info_present.y"]
    buffer.close()
