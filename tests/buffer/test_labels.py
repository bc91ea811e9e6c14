"""labels.json as conditions: what it says of episodes, and of which."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from buffer_helpers import add, make_plain, run_script

from gym_replay import ConcatReplayBuffer, CorruptBufferError, ReplayBuffer, select, timestep_loader
from gym_replay.cli import main


def label(folder, labels, uuid=None):
    uuid = uuid or json.loads((folder / "metadata.json").read_text())["uuid"]
    document = {"format": "gym_replay labels", "version": 1, "labels": {uuid: labels}}
    (folder / "labels.json").write_text(json.dumps(document))


def steps(source, where):
    """What a loader serves, in its order."""
    return np.concatenate([batch["x"] for batch in timestep_loader(source, 64, episodes=where)]).tolist()


@pytest.fixture
def folder(tmp_path):
    with make_plain(tmp_path / "plain") as buffer:
        add(buffer, 1, 1, 1, 1)
    return tmp_path / "plain"


def test_labels_choose_episodes(folder, tmp_path):
    label(folder, {"1": "good", "3": "bad"})
    assert steps(ReplayBuffer.from_folder(folder), "label == 'good'") == [100]
    assert steps(ReplayBuffer.from_folder(folder), "label != 'bad'") == [0, 100, 200]
    assert steps(ReplayBuffer.from_folder(folder), "label == ''") == [0, 200]
    made = select(folder, tmp_path / "copy", where="label in ['good', 'bad']", progress=False)
    assert [int(episode["x"][0]) for episode in made] == [100, 300]


def test_labels_stay_with_their_episodes(folder):
    label(folder, {"1": "good", "3": "bad", "77": "good"})
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.delete(0)
        add(buffer, 1)
        assert steps(buffer, "label == 'good'") == [100]
        assert steps(buffer, "label == 'bad'") == [300]


def test_labels_of_several_buffers(folder, tmp_path):
    with make_plain(tmp_path / "other") as other:
        add(other, 1, 1, first=7)
    label(tmp_path / "other", {"1": "good"})
    label(folder, {"0": "good"})
    assert steps(ConcatReplayBuffer([folder, tmp_path / "other"]), "label == 'good'") == [0, 800]


def test_labels_of_another_buffer_are_nobodys(folder):
    label(folder, {"1": "good"}, uuid="0" * 32)
    assert steps(ReplayBuffer.from_folder(folder), "label == ''") == [0, 100, 200, 300]


def test_a_meta_field_counts_where_the_file_says_nothing(tmp_path):
    with ReplayBuffer(tmp_path / "meta", fields={"x": "int64"}, meta_fields={"label": "str"}) as buffer:
        for number, text in enumerate(["good", "good", "bad"]):
            buffer.store_episode(x=np.array([number]), label=text)
    label(tmp_path / "meta", {"1": "bad"})
    assert steps(ReplayBuffer.from_folder(tmp_path / "meta"), "label == 'good'") == [0]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"labels": {}}', b'{"format": "gym_replay labels", "version": 2, "labels": {}}'],
)
def test_a_damaged_file_is_named(folder, content):
    (folder / "labels.json").write_bytes(content)
    buffer = ReplayBuffer.from_folder(folder)
    with pytest.raises(CorruptBufferError, match=r"labels\.json.*move the file away"):
        steps(buffer, "label == 'good'")
    assert steps(buffer, "length == 1") == [0, 100, 200, 300]


@pytest.mark.parametrize("labels", [[], "good", {"x": "good", "-1": "good", "1": 5, "9" * 30: "good", "2": "x" * 999}])
def test_what_is_no_label_is_left_out(folder, labels):
    label(folder, labels)
    assert steps(ReplayBuffer.from_folder(folder), "label == ''") == [0, 100, 200, 300]


def test_a_link_is_not_followed(folder, tmp_path):
    label(folder, {"1": "good"})
    (folder / "labels.json").rename(tmp_path / "labels.json")
    (folder / "labels.json").symlink_to(tmp_path / "labels.json")
    with pytest.raises(CorruptBufferError, match="links"):
        steps(ReplayBuffer.from_folder(folder), "label == 'good'")


def labels_in(folder, capsys):
    """How many episodes have which label, as the command counts them."""
    capsys.readouterr()
    assert main(["label", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["labels"]


def test_the_command_sets_counts_and_applies_labels(folder, tmp_path, capsys):
    assert main(["label", str(folder), "--set", "good", "--episodes", "0:2"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [["good", "2"], ["(none)", "2"]]
    assert main(["label", str(folder), "--set", "far", "--where", "index == 3"]) == 0
    assert main(["label", str(folder), "--set", "", "--episodes", "0"]) == 0
    assert labels_in(folder, capsys) == {"good": 1, "far": 1}
    assert main(["label", str(folder), "--apply"]) == 0
    with ReplayBuffer.from_folder(folder) as buffer:
        assert [episode.meta["label"] for episode in buffer] == ["", "good", "", "far"]
    with select(folder, tmp_path / "copy", where="label != ''", progress=False) as copy:
        assert [episode.meta["label"] for episode in copy] == ["good", "far"]
    assert main(["label", str(folder), "--apply"]) == 0  # of nothing
    assert labels_in(folder, capsys) == {"good": 1, "far": 1}


def test_labelling_goes_on_where_there_is_a_meta_field(folder, capsys):
    main(["label", str(folder), "--set", "good"])
    main(["label", str(folder), "--apply"])
    main(["label", str(folder), "--set", "", "--episodes", "0"])
    main(["label", str(folder), "--set", "bad", "--episodes", "1"])
    assert labels_in(folder, capsys) == {"good": 2, "bad": 1}
    main(["label", str(folder), "--apply"])
    with ReplayBuffer.from_folder(folder) as buffer:
        assert [episode.meta["label"] for episode in buffer] == ["", "bad", "good", "good"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "x" * 201], "at most 200 characters"),
        (["--set", "good", "--apply"], "goes with no other option"),
        (["--set", "good", "--where", "labell == 'x'"], "did you mean 'label'"),
    ],
)
def test_wrong_labels_are_refused(folder, capsys, arguments, message):
    assert main(["label", str(folder), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "labels.json").exists()


def test_labels_are_kept_where_they_cannot_be_applied(folder, capsys):
    main(["label", str(folder), "--set", "good"])
    before = (folder / "labels.json").read_bytes()
    with ReplayBuffer.from_folder(folder) as buffer:
        add(buffer, 1)  # the lock is taken
        assert main(["label", str(folder), "--apply"]) == 2
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.add_meta_field("label", "float64")
    assert main(["label", str(folder), "--apply"]) == 2
    assert "holds no strings" in capsys.readouterr().err
    assert (folder / "labels.json").read_bytes() == before


LABEL_SOME = """
import sys
from gym_replay.cli import main
for episode in range(int(sys.argv[2]), 40, 4):
    assert main(["label", sys.argv[1], "--set", "good", "--episodes", str(episode)]) == 0
"""


def test_processes_that_label_at_once_lose_no_label(folder):
    with ReplayBuffer.from_folder(folder) as buffer:
        add(buffer, *[1] * 36)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda first: run_script(LABEL_SOME, folder, first), range(4)))
    assert [status for status, _ in done] == [0] * 4, done
    assert len(steps(ReplayBuffer.from_folder(folder), "label == 'good'")) == 40
    assert not list(folder.glob("labels.json.*"))
