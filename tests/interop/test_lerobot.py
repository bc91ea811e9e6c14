"""LeRobot datasets without LeRobot: there and back, datasets laid out by hand, and those of strangers."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from internals import small_sizes
from interop_helpers import Sights, by_hand, cartpole, pendulum, record, sights

from gym_replay import (
    BufferNotFoundError,
    ConcatReplayBuffer,
    CorruptBufferError,
    EmptyBufferError,
    Field,
    FieldError,
    NotABufferError,
    ReplayBuffer,
    UnsupportedFormatError,
    export_lerobot,
    import_lerobot,
)
from gym_replay.cli import main

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PIL = pytest.importorskip("PIL.Image")

TOP = "observation.camera.top"
INFO = "meta/info.json"


def assert_same(one, other, but=()):
    """Two buffers with one schema, and the same episodes bit for bit, but for some fields."""
    assert (one.metadata.fields, one.metadata.meta_fields) == (other.metadata.fields, other.metadata.meta_fields)
    assert list(one.metadata.fields) == list(other.metadata.fields)
    assert one.metadata.environment == other.metadata.environment
    assert one.metadata.recorder_meta == other.metadata.recorder_meta
    for mine, theirs in zip(one, other, strict=True):
        assert (len(mine), mine.complete, mine.has_final) == (len(theirs), theirs.complete, theirs.has_final)
        for name in theirs.snapshot.metadata.meta_fields:
            assert np.asarray(mine.meta[name]).tobytes() == np.asarray(theirs.meta[name]).tobytes()
        for name in theirs:
            if name in but:
                assert mine[name].shape == theirs[name].shape
            elif theirs.snapshot.metadata.fields[name].ragged:
                assert [row.tobytes() for row in mine[name]] == [row.tobytes() for row in theirs[name]]
            else:
                assert np.asarray(mine[name]).tobytes() == np.asarray(theirs[name]).tobytes()


def back(buffer, folder, **options):
    """The buffer there and back."""
    export_lerobot(buffer, folder / "there", **{"fps": 10, "task": "do it", "video": False, **options})
    import_lerobot(folder / "there", folder / "back")
    return ReplayBuffer.from_folder(folder / "back", read_only=True)


@pytest.mark.parametrize(
    "made",
    [
        cartpole,
        pendulum,
        sights,
        lambda folder: sights(folder, codecs={"images": "zstd"}),
        lambda folder: sights(folder, codecs={"images": "jpeg"}),
        lambda folder: by_hand(folder, [3, 1, 5], [True, False, True]),
    ],
    ids=["cartpole", "pendulum", "images", "zstd", "jpeg", "by hand"],
)
def test_there_and_back_is_the_same_buffer(tmp_path, made):
    with made(tmp_path / "a") as buffer, back(buffer, tmp_path) as found:
        assert_same(found, buffer)


def test_every_kind_of_field(tmp_path):
    """Dtypes, shapes, NaNs with different bits, ragged rows, strings, fields of the user's own, and cut episodes."""
    dtypes = ["bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64"]
    fields = {f"observation.{dtype}": Field(dtype, (2,), state=True) for dtype in dtypes}
    fields |= {"observation.grid": Field("uint8", (4, 5, 6), state=True), "observation.one": Field("float32", (1,))}
    fields |= {
        "observation.empty": Field("float32", (0,), state=True),
        "action.a": "int",
        "action.b": Field("int8", (3, 2)),
    }
    fields |= {"reward": Field("float64", (1,)), "words": Field("uint8", ragged=True), "timestamp": "float64"}
    rng = np.random.default_rng(0)
    with ReplayBuffer(tmp_path / "a", fields=fields, meta_fields={"task": "str", "score": ("float", 2)}) as buffer:
        for number, length in enumerate((4, 1, 7)):
            values = {}
            for name, field in buffer.metadata.fields.items():
                count = length + (field.state and number != 1)
                raw = rng.integers(0, 256, (count, field.nbytes), np.uint8)
                if field.ragged:
                    values[name] = [row[: rng.integers(0, 2)] for row in raw]
                elif field.dtype == bool:
                    values[name] = (raw % 2).astype(bool).reshape(count, *field.shape)
                else:
                    values[name] = raw.view(field.dtype).reshape(count, *field.shape)
            buffer.put_episode({**values, "task": f"t{number % 2}", "score": [np.nan, number]}, complete=number != 2)
        report = export_lerobot(buffer, tmp_path / "there", fps=30)
        assert "words" not in report.features
        assert any("words" in line and "timestamp" in line for line in report.unseen)
        import_lerobot(tmp_path / "there", tmp_path / "back")
        with ReplayBuffer.from_folder(tmp_path / "back") as found:
            assert_same(found, buffer)
        assert parquet.read_table(tmp_path / "there/meta/tasks.parquet").to_pydict() == {
            "task_index": [0, 1],
            "task": ["t0", "t1"],
        }


def test_chosen_episodes_of_a_ring_and_of_several_buffers(tmp_path):
    ring = by_hand(tmp_path / "ring", [9, 9, 9, 9, 9, 9], [True] * 6, circular=True, max_steps=40)
    with ring, back(ring, tmp_path / "1", episodes=[0, 2]) as found:
        assert [e["observation"][0, 0] for e in found] == [ring.episode(i)["observation"][0, 0] for i in (0, 2)]
    both = ConcatReplayBuffer([by_hand(tmp_path / "b1", [2], [True]), by_hand(tmp_path / "b2", [3], [True])])
    with both, back(both, tmp_path / "2", task=["x", "y"]) as found:
        assert [len(episode) for episode in found] == [2, 3]


def test_long_episodes_come_in_pieces(tmp_path, monkeypatch):
    """Rows are written and read piece by piece, with the images of an episode in several row groups and files."""
    small_sizes(monkeypatch, lerobot_piece=5 * 32 * 40 * 3, lerobot_file=2000)
    buffer = record(tmp_path / "a", Sights(40), 4, codecs={"images": "zstd"})
    with buffer, back(buffer, tmp_path) as found:
        assert_same(found, buffer)
    files = sorted((tmp_path / "there/data/chunk-000").iterdir())
    assert len(files) == 4
    assert parquet.ParquetFile(files[0]).num_row_groups > 1


def test_the_report_and_the_files(tmp_path):
    with sights(tmp_path / "a", 2) as buffer:
        report = export_lerobot(buffer, tmp_path / "b", fps=5, task="look", video=False, robot_type="arm")
        length = len(buffer.episode(0))
    assert report.features == {
        TOP: "observation.images.camera.top",
        "observation.state": "observation.state",
        "action": "action",
        "reward": "next.reward",
    }
    assert report.changed == ()
    assert "terminated" in str(report)
    info = json.loads((tmp_path / "b" / INFO).read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 5, "arm")
    assert (info["total_episodes"], info["total_frames"], info["video_path"]) == (2, report.num_frames, None)
    rows = parquet.read_table(tmp_path / "b/data/chunk-000/file-000.parquet")
    assert rows.column("timestamp").to_pylist()[:2] == [0.0, np.float32(0.2)]
    assert rows.column("next.done").to_pylist()[length - 1] is True
    png = rows.column("observation.images.camera.top")[0].as_py()["bytes"]
    assert np.asarray(PIL.open(io.BytesIO(png))).shape == (32, 40, 3)
    table = parquet.read_table(tmp_path / "b/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in table] == [length, report.num_frames]
    assert np.shape(table[0]["stats/observation.images.camera.top/mean"]) == (3, 1, 1)
    stats = json.loads((tmp_path / "b/meta/stats.json").read_text())
    assert set(stats["action"]) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def test_statistics_are_those_of_the_values(tmp_path):
    with ReplayBuffer(
        tmp_path / "a", fields={"observation": Field("float64", (2,), state=True), "action": "int"}
    ) as buffer:
        rng = np.random.default_rng(0)
        for length in (5, 40, 1):
            values = rng.normal(100, 3, (length + 1, 2))
            values[0, 1] = np.nan
            buffer.store_episode(observation=values, action=np.arange(length))
        values = np.concatenate([episode["observation"][: len(episode)] for episode in buffer])
        export_lerobot(buffer, tmp_path / "b", fps=5, task="")
    found = json.loads((tmp_path / "b/meta/stats.json").read_text())["observation.state"]
    for name, expected in (("min", np.nanmin), ("max", np.nanmax), ("mean", np.nanmean), ("std", np.nanstd)):
        np.testing.assert_allclose(found[name], expected(values, axis=0), rtol=1e-9)
    assert found["count"] == [len(values)]
    np.testing.assert_allclose(found["q50"][0], np.median(values[:, 0]))


def test_keys_of_features(tmp_path):
    with sights(tmp_path / "a", 2) as buffer:
        keys = {"observation.state": "observation.environment_state", TOP: None, "terminated": "next.success"}
        report = export_lerobot(buffer, tmp_path / "b", fps=5, task="look", video=False, keys=keys)
        assert report.features == {
            "observation.state": "observation.environment_state",
            "action": "action",
            "reward": "next.reward",
            "terminated": "next.success",
        }
        import_lerobot(tmp_path / "b", tmp_path / "c")
        with ReplayBuffer.from_folder(tmp_path / "c") as found:
            assert_same(found, buffer)


def test_names_of_numbers(tmp_path):
    """LeRobot has one name for each number of an observation or action, and none for rewards and flags."""

    def names_in(folder):
        features = json.loads((tmp_path / folder / "meta/info.json").read_text())["features"]
        return {key: entry["names"] for key, entry in features.items() if entry["names"] is not None}

    with sights(tmp_path / "a", 1) as buffer:
        options = {"fps": 5, "task": "look", "video": False, "progress": False}
        export_lerobot(buffer, tmp_path / "b", **options)
        image = {"observation.images.camera.top": ["height", "width", "channels"]}
        states = [f"state_{number}" for number in range(4)]
        assert names_in("b") == {"observation.state": states, **image, "action": ["action_0", "action_1"]}
        export_lerobot(buffer, tmp_path / "c", element_names={"action": ("pan.pos", "lift.pos")}, **options)
        assert names_in("c")["action"] == ["pan.pos", "lift.pos"]
        with pytest.raises(FieldError, match="expected a field of one axis"):
            export_lerobot(buffer, tmp_path / "d", element_names={TOP: ["h", "w"]}, **options)
    command = ["export", "lerobot", str(tmp_path / "a"), str(tmp_path / "d"), "--fps", "5", "--task", "x", "--no-video"]
    assert (
        main([*command, "--element-names", "action=pan.pos,lift.pos", "--element-names", "observation.state=a,b,c,d"])
        == 0
    )
    assert names_in("d") == {"observation.state": list("abcd"), **image, "action": ["pan.pos", "lift.pos"]}
    assert main([*command, "--element-names", "pan.pos"]) == 2

    shutil.rmtree(tmp_path / "d/gym_replay")  # as if somebody else had made it
    for names in ["pan.pos", "lift.pos"], {"motors": ["pan.pos", "lift.pos"]}:
        edited(tmp_path / "d", lambda info, names=names: info["features"]["action"].update(names=names))
        import_lerobot(tmp_path / "d", tmp_path / "e")
        export_lerobot(tmp_path / "e", tmp_path / "f", video=False)
        assert names_in("f") == {"observation.state": list("abcd"), **image, "action": ["pan.pos", "lift.pos"]}
        shutil.rmtree(tmp_path / "e")
        shutil.rmtree(tmp_path / "f")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": None}, "fps: LeRobot has a time for each frame"),
        ({"fps": 0}, "fps: expected an integer from 1"),
        ({"fps": 2.5}, "fps: expected an integer"),
        ({"task": None}, "task: LeRobot has a text for each frame"),
        ({"task": ["one"]}, "task: expected a text, or one for each of 2 episodes"),
        ({"video": "yes"}, "video='yes': expected True, False, or a dict"),
        ({"keys": {"nothing": "x"}}, "keys: unknown field 'nothing'"),
        ({"keys": {"action": "index"}}, "LeRobot needs this key for itself"),
        ({"keys": {"action": "a/b"}}, "no feature has such a key"),
        ({"keys": {"action": "observation.state"}}, "are both the feature 'observation.state'"),
        ({"keys": {"action": None, "observation": None}}, "no observation or action"),
        ({"element_names": {"actoin": ["x"]}}, "no feature is made of a field 'actoin'; did you mean 'action'"),
        ({"element_names": {"observation": ["x"]}}, "expected 2 different ones, one for each number, got"),
        ({"element_names": {"observation": ["x", "x"]}}, "expected 2 different ones"),
        ({"element_names": {"observation": "xy"}}, "expected 2 different ones"),
    ],
)
def test_what_an_export_cannot_do(tmp_path, options, message):
    with by_hand(tmp_path / "a", [2, 3], [True, True]) as buffer, pytest.raises(FieldError, match=message):
        export_lerobot(buffer, tmp_path / "b", **{"fps": 10, "task": "x", **options})
    assert sorted(os.listdir(tmp_path)) == ["a"]


def test_a_dataset_of_the_hub_is_fetched_by_hand(tmp_path):
    with pytest.raises(BufferNotFoundError, match="nothing is downloaded: `hf download NAME --repo-type dataset"):
        import_lerobot(tmp_path / "lerobot/pusht", tmp_path / "a")


def test_targets_that_are_taken_and_sources_that_are_empty(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").touch()
    with by_hand(tmp_path / "a", [2], [True]) as buffer:
        with pytest.raises(NotABufferError, match="something here already; choose a folder that does not exist"):
            export_lerobot(buffer, tmp_path / "full", fps=1, task="")
        export_lerobot(buffer, tmp_path / "b", fps=1, task="")
        with pytest.raises(EmptyBufferError):
            export_lerobot(buffer, tmp_path / "c", fps=1, task="", episodes=[])
    with pytest.raises(NotABufferError):
        import_lerobot(tmp_path / "b", tmp_path / "full")
    with pytest.raises(BufferNotFoundError, match=r"no meta/info\.json"):
        import_lerobot(tmp_path / "a", tmp_path / "c")


def test_an_export_that_fails_in_its_middle_leaves_nothing(tmp_path):
    with by_hand(tmp_path / "a", [2, 3], [True, True]) as buffer:
        buffer.add_field("words", Field("uint8", ragged=True))
    elements = tmp_path / "a/steps/words.spans.npy"
    spans = np.load(elements, mmap_mode="r+")
    spans[4:] = 1 << 40
    spans.flush()
    with pytest.raises(CorruptBufferError):
        export_lerobot(tmp_path / "a", tmp_path / "b", fps=1, task="x")
    assert sorted(os.listdir(tmp_path)) == ["a"]


# --- datasets of other origin ---


@pytest.fixture
def foreign(tmp_path):
    """A dataset as LeRobot writes them, with images in the tables, and the buffer that has its values."""
    with sights(tmp_path / "a", 3) as buffer:
        export_lerobot(buffer, tmp_path / "v3", fps=10, task=["look", "touch", "look"], video=False, robot_type="arm")
        shutil.rmtree(tmp_path / "v3/gym_replay")
        yield tmp_path / "v3", buffer


def edited(folder, change, name=INFO):
    """Change a JSON file of a dataset."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


def rewritten(path, change):
    """Change the columns of a table."""
    columns = parquet.read_table(path).to_pydict()
    change(columns)
    parquet.write_table(pa.table(columns), path)


def as_old(folder, target):
    """The same dataset in the layout of v2.1, with files for each episode."""
    rows = parquet.read_table(folder / "data/chunk-000/file-000.parquet")
    episodes = parquet.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    (target / "data/chunk-000").mkdir(parents=True)
    (target / "meta").mkdir()
    with open(target / "meta/episodes.jsonl", "w") as file:
        for row in episodes:
            index, begin = row["episode_index"], row["dataset_from_index"]
            parquet.write_table(
                rows.slice(begin, row["length"]), target / f"data/chunk-000/episode_{index:06d}.parquet"
            )
            file.write(json.dumps({name: row[name] for name in ("episode_index", "tasks", "length")}) + "\n")
    tasks = parquet.read_table(folder / "meta/tasks.parquet").to_pylist()
    (target / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tasks))
    shutil.copy(folder / INFO, target / INFO)

    def change(info):
        info["codebase_version"] = "v2.1"
        info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
        info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"

    edited(target, change)
    return target


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_dataset_of_other_origin(tmp_path, foreign, version):
    folder, expected = foreign
    folder = folder if version == "v3.0" else as_old(folder, tmp_path / "v21")
    report = import_lerobot(folder, tmp_path / "b")
    assert report.not_known == (
        "seeds, spaces, and the environment",
        "the last observation of 3 episodes: their last transition is no n-step sample",
    )
    assert report.left_out == ()
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.meta["task"] == ["look", "touch", "look"]
        assert buffer.metadata.environment["lerobot"]["robot_type"] == "arm"
        assert buffer.metadata.environment["lerobot"]["codebase_version"] == version
        assert buffer.metadata.fields["observation.images.camera.top"].codec["id"] == "zstd"
        for mine, theirs in zip(buffer, expected, strict=True):
            assert (mine.has_final, mine.complete) == (False, True)
            for name in ("action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(mine[name], theirs[name])
            for name, other in (("observation.state", "observation.state"), ("observation.images.camera.top", TOP)):
                np.testing.assert_array_equal(mine[name], theirs[other][: len(theirs)])
            np.testing.assert_array_equal(mine["timestamp"], (np.arange(len(mine)) / 10).astype(np.float32))


def test_what_a_dataset_does_not_tell_is_not_made_up(tmp_path, foreign):
    folder, _ = foreign

    def change(info):
        for key in ("next.reward", "next.truncated"):
            del info["features"][key]
        info["features"]["words"] = {"dtype": "string", "shape": [1], "names": None}
        info["features"]["depth"] = {"dtype": "image", "shape": [4, 4, 1], "info": {"is_depth_map": True}}

    edited(folder, change)
    report = import_lerobot(folder, tmp_path / "b", codecs={"images": "raw"})
    assert report.not_known[:3] == (
        "rewards: there is no feature next.reward",
        "whether episodes terminated or were truncated: next.done and next.truncated would say it",
        "seeds, spaces, and the environment",
    )
    assert report.not_known[-1].startswith("how 3 episodes ended")
    assert [line.partition(":")[0] for line in report.left_out] == ["words", "depth"]
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert "reward" not in buffer.metadata.fields
        assert buffer.metadata.fields["observation.images.camera.top"].codec is None
        for episode in buffer:
            assert not episode["terminated"].any()
            assert episode["next.done"].tolist() == episode["truncated"].tolist()


def test_features_that_are_called_as_fields_here(tmp_path, foreign):
    """Neither is the flag or the reward of the buffer, and both go back under their keys."""
    folder, expected = foreign

    def change(info):
        for name in ("terminated", "reward"):
            info["features"][name] = {"dtype": "float32", "shape": [1], "names": None}

    edited(folder, change)
    path = folder / "data/chunk-000/file-000.parquet"
    rewritten(
        path, lambda columns: columns.update({"terminated": columns["timestamp"], "reward": columns["timestamp"]})
    )
    import_lerobot(folder, tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        for mine, theirs in zip(buffer, expected, strict=True):
            np.testing.assert_array_equal(mine["reward"], theirs["reward"])
            np.testing.assert_array_equal(mine["lerobot.terminated"], mine["timestamp"])
            np.testing.assert_array_equal(mine["terminated"], theirs["terminated"])
        report = export_lerobot(buffer, tmp_path / "c", video=False)
    assert (report.features["lerobot.terminated"], report.features["lerobot.reward"]) == ("terminated", "reward")


def test_several_tasks_of_an_episode(tmp_path, foreign):
    folder, _ = foreign
    table = folder / "meta/episodes/chunk-000/file-000.parquet"
    rewritten(table, lambda columns: columns.update(tasks=[["look", "touch"], ["touch"], ["look"]]))
    import_lerobot(folder, tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.meta["task"] == ["look\ntouch", "touch", "look"]
        assert buffer.metadata.environment["lerobot"]["tasks"] == {"0": "look", "1": "touch"}
        assert [set(episode["task_index"].tolist()) for episode in buffer] == [{0}, {1}, {0}]


def test_tasks_and_subtasks_of_steps_go_there_and_back(tmp_path, foreign):
    folder, _ = foreign
    data = folder / "data/chunk-000/file-000.parquet"
    tasks, subtasks = [], []

    def change(columns):
        tasks.extend(number % 2 for number in columns["index"])
        subtasks.extend(number % 3 - 1 for number in columns["index"])  # -1 stands for none
        columns.update(task_index=tasks, subtask_index=subtasks)

    rewritten(data, change)
    edited(folder, lambda info: info["features"].update(subtask_index={"dtype": "int64", "shape": [1], "names": None}))
    rewritten(
        folder / "meta/episodes/chunk-000/file-000.parquet",
        lambda columns: columns.update(tasks=[["look", "touch"]] * 3),
    )
    parquet.write_table(
        pa.table({"subtask_index": [0, 1], "__index_level_0__": ["reach", "grasp"]}), folder / "meta/subtasks.parquet"
    )
    (folder / "meta/modality.json").write_text("{}")
    report = import_lerobot(folder, tmp_path / "b")
    assert [line for line in report.left_out if "modality.json" in line]
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.metadata.environment["lerobot"]["subtasks"] == {"0": "reach", "1": "grasp"}
        assert np.concatenate([episode["subtask_index"] for episode in buffer]).tolist() == subtasks
        export_lerobot(buffer, tmp_path / "c", video=False)
    texts = dict(parquet.read_table(tmp_path / "c/meta/tasks.parquet").to_pydict())
    names = dict(zip(texts["task_index"], texts["task"], strict=True))
    there = parquet.read_table(tmp_path / "c/data/chunk-000/file-000.parquet").to_pydict()
    assert [names[number] for number in there["task_index"]] == [("look", "touch")[number] for number in tasks]
    assert there["subtask_index"] == subtasks
    listed = parquet.read_table(tmp_path / "c/meta/episodes/chunk-000/file-000.parquet").to_pydict()["tasks"]
    assert [sorted(words) for words in listed] == [["look", "touch"]] * 3
    assert parquet.read_table(tmp_path / "c/meta/subtasks.parquet").to_pydict() == {
        "subtask_index": [0, 1],
        "subtask": ["reach", "grasp"],
    }


def test_images_whose_axes_have_no_names(tmp_path, foreign):
    folder, expected = foreign
    height, width, channels = expected.metadata.fields[TOP].shape

    def change(info):
        info["features"][IMAGE] |= {"shape": [channels, height, width], "names": None}

    edited(folder, change)
    import_lerobot(folder, tmp_path / "b")
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        np.testing.assert_array_equal(buffer[0][IMAGE], expected[0][TOP][:-1])


def test_a_dataset_that_was_changed_after_its_export(tmp_path):
    """What went along belongs to other episodes then, and is left aside."""
    with by_hand(tmp_path / "a", [2, 3], [True, True]) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=10, task="x")
    table = tmp_path / "b/meta/episodes/chunk-000/file-000.parquet"
    rewritten(table, lambda columns: [column.pop() for column in columns.values()])
    edited(tmp_path / "b", lambda info: info.update(total_episodes=1, total_frames=2))
    report = import_lerobot(tmp_path / "b", tmp_path / "c")
    assert report.num_episodes == 1
    assert report.left_out == (
        "the folder gym_replay: the dataset was changed after its export: its episodes are others",
    )


def in_the_cache(folder, place):
    """The dataset as the hub's cache keeps it: each file a link into the folder of blobs beside it."""
    root = place / "datasets--me--it/snapshots/abc"
    (place / "datasets--me--it/blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = place / f"datasets--me--it/blobs/{number}"
        shutil.copy(path, blob)
        link = root / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root


def test_an_export_in_the_hub_s_cache_is_the_same_buffer(tmp_path):
    with by_hand(tmp_path / "a", [2, 3], [True, False]) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=10, task="x")
        import_lerobot(in_the_cache(tmp_path / "b", tmp_path / "cache"), tmp_path / "c")
        with ReplayBuffer.from_folder(tmp_path / "c") as found:
            assert_same(found, buffer)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path, foreign):
    folder, _ = foreign
    assert import_lerobot(in_the_cache(folder, tmp_path / "cache"), tmp_path / "b").num_episodes == 3
    outside = tmp_path / "elsewhere.parquet"
    path = folder / "data/chunk-000/file-000.parquet"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(CorruptBufferError, match="a link leads out of the folder"):
        import_lerobot(folder, tmp_path / "c")


def of_info(change):
    return lambda folder: edited(folder, change)


def of_table(change, name="meta/episodes/chunk-000/file-000.parquet"):
    return lambda folder: rewritten(folder / name, change)


def cut(name, keep=0.5):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


DATA = "data/chunk-000/file-000.parquet"
STATE, IMAGE = "observation.state", "observation.images.camera.top"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_info(lambda info: info.update(codebase_version="v9")), "codebase version 'v9'"),
        (of_info(lambda info: info.update(data_path="../../{chunk_index}{file_index}")), "leads out of the folder"),
        (of_info(lambda info: info.update(data_path="/etc/passwd")), "leads out of the folder"),
        (of_info(lambda info: info.update(data_path="{chunk_index.__class__}")), "none of LeRobot's"),
        (of_info(lambda info: info.update(data_path="{secret}")), "that nothing is known of"),
        (of_info(lambda info: info.update(data_path="nothing")), "this file of the dataset is missing"),
        (of_info(lambda info: info.update(total_frames=1 << 40)), "it says that there are 3 episodes"),
        (of_info(lambda info: info.update(total_episodes=-1)), "expected a number from 0 on"),
        (of_info(lambda info: info.update(fps=0)), "'fps': expected a positive number"),
        (of_info(lambda info: info.pop("features")), "'features': expected dict"),
        (of_info(lambda info: info["features"].update({STATE: 3})), "expected a dtype and a shape"),
        (
            of_info(lambda info: info["features"][STATE].update(shape=[1 << 20, 1 << 20])),
            "larger than any that is read",
        ),
        (of_info(lambda info: info["features"][STATE].update(shape=[5])), r"expected rows of shape \(5,\), got 4"),
        (of_info(lambda info: info["features"][STATE].update(dtype="int64")), "expected int64, got"),
        (of_info(lambda info: info["features"][IMAGE].update(shape=[32, 41, 3])), "an image of 41x32 pixels"),
        (of_info(lambda info: info["features"][IMAGE].update(dtype="video")), "no 'video_path'"),
        (
            of_info(
                lambda info: (
                    info["features"][IMAGE].update(dtype="video"),
                    info["features"].pop("timestamp"),
                    info.update(video_path="{video_key}"),
                )
            ),
            "no feature 'timestamp'",
        ),
        (of_info(lambda info: info["features"].update(gone=info["features"][STATE])), "no column 'gone'"),
        (cut(INFO), "not valid JSON"),
        (cut(DATA), "it cannot be read"),
        (cut("meta/episodes/chunk-000/file-000.parquet"), "it cannot be read"),
        (cut("meta/tasks.parquet"), "it cannot be read"),
        (lambda folder: (folder / DATA).unlink(), "this file of the dataset is missing"),
        (lambda folder: shutil.rmtree(folder / "meta/episodes"), "there are 0 with 0"),
        (of_table(lambda columns: columns["length"].__setitem__(1, 1 << 45)), "has 35184372088832 frames"),
        (of_table(lambda columns: columns["length"].__setitem__(1, 2)), "it says that there are 3 episodes"),
        (of_table(lambda columns: columns["episode_index"].reverse()), "expected episode 0 next"),
        (of_table(lambda columns: columns["data/file_index"].__setitem__(0, -1)), "expected a number from 0 on"),
        (of_table(lambda columns: columns.pop("tasks")), "no column 'tasks'"),
        (of_table(lambda columns: columns["episode_index"].__setitem__(0, 2), DATA), "expected 6 rows of episode 0"),
        (of_table(lambda columns: columns[STATE].__setitem__(0, None), DATA), "a row is missing"),
        (
            of_table(lambda columns: columns[IMAGE].__setitem__(1, {"bytes": b"x", "path": ""}), DATA),
            "cannot be decoded",
        ),
        (
            of_table(lambda columns: columns[IMAGE].__setitem__(1, {"bytes": None, "path": "a.png"}), DATA),
            "not followed",
        ),
    ],
)
def test_a_stranger_s_dataset_is_an_error_and_leaves_nothing(tmp_path, foreign, damage, message):
    folder, _ = foreign
    damage(folder)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises((CorruptBufferError, UnsupportedFormatError), match=message):
        import_lerobot(folder, tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == before


# --- videos ---


@pytest.mark.parametrize("options", [True, {"codec": "libx264rgb", "crf": 0}], ids=["h264", "lossless"])
def test_videos_there_and_back(tmp_path, options):
    pytest.importorskip("av")
    buffer = sights(tmp_path / "a", 3, codecs={"images": "zstd"})
    with buffer, back(buffer, tmp_path, video=options) as found:
        assert_same(found, buffer, but=[TOP] if options is True else [])
        for mine, theirs in zip(found, buffer, strict=True):
            np.testing.assert_allclose(mine[TOP][:-1].astype(int), theirs[TOP][:-1], atol=12)
            np.testing.assert_array_equal(mine[TOP][-1], theirs[TOP][-1])


def test_videos_of_other_origin_and_of_each_version(tmp_path, monkeypatch):
    """Frames are those of their row's time, also of an episode that begins late in a file; odd sides are taken."""
    pytest.importorskip("av")
    fields = {"observation": Field("uint8", (33, 47, 3), state=True), "action": "int"}
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        for number in range(3):
            frames = np.zeros((9, 33, 47, 3), np.uint8)
            frames[...] = (20 * np.arange(9) + 5 * number)[:, None, None, None]
            buffer.store_episode(observation=frames, action=np.arange(8))
        export_lerobot(buffer, tmp_path / "v3", fps=7, task="x", video={"crf": 10})
        shutil.rmtree(tmp_path / "v3/gym_replay")
        import_lerobot(tmp_path / "v3", tmp_path / "b")
        with ReplayBuffer.from_folder(tmp_path / "b") as found:
            for mine, theirs in zip(found, buffer, strict=True):
                np.testing.assert_allclose(
                    np.asarray(mine["observation.image"]).astype(int), theirs["observation"][:8], atol=3
                )
    video = tmp_path / "v3/videos/observation.image/chunk-000/file-000.mp4"
    content = video.read_bytes()
    for damage, message in (
        (content[: len(content) // 2], "cannot be decoded|no frame at"),
        (b"", "cannot be decoded"),
        (b"\0" * 1000, "cannot be decoded"),
    ):
        video.write_bytes(damage)
        with pytest.raises(CorruptBufferError, match=message):
            import_lerobot(tmp_path / "v3", tmp_path / "c")
    video.write_bytes(content)
    edited(tmp_path / "v3", lambda info: info["features"]["observation.image"].update(shape=[66, 47, 3]))
    with pytest.raises(CorruptBufferError, match="a video of 47x66 pixels, got one of 47x33"):
        import_lerobot(tmp_path / "v3", tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "v3"]


def test_an_encoder_that_is_not_there_or_refuses(tmp_path):
    pytest.importorskip("av")
    with sights(tmp_path / "a", 2) as buffer:
        for options, message in (({"codec": "no-such"}, "no encoder 'no-such'"), ({"pix_fmt": "gray16be"}, "options")):
            with pytest.raises(FieldError, match=message):
                export_lerobot(buffer, tmp_path / "b", fps=1, task="x", video=options)
    assert sorted(os.listdir(tmp_path)) == ["a"]
