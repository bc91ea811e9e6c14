"""Files of robomimic."""

import json

import numpy as np
import pytest

from gym_replay import CorruptBufferError, FieldError, ReplayBuffer, from_robomimic

h5py = pytest.importorskip("h5py")


def write(path, lengths=(3, 2, 4), *, rewards=True, following=True, change=None):
    """A file as robomimic's documentation lays it out; demonstration k is ``demo_k``, the last one first."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}})
        for number, length in reversed(list(enumerate(lengths))):
            demo, steps = data.create_group(f"demo_{number}"), np.arange(length)
            demo.attrs["num_samples"], demo.attrs["model_file"] = length, f"<mujoco model='{number}'/>"
            demo["actions"] = np.stack([steps, -steps], 1) / 10
            demo["states"] = np.full((length, 5), number, np.float64)
            demo["dones"] = np.int64(steps >= 1)
            if rewards:
                demo["rewards"] = steps.astype(float)
            for name, later in (("obs", 0), ("next_obs", 1))[: 1 + following]:
                demo[f"{name}/robot0_eef_pos"] = 10.0 * number + (steps + later)[:, None]
                demo[f"{name}/agentview_image"] = np.tile(np.uint8(steps + later)[:, None, None, None], (1, 8, 8, 3))
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
        file["mask/valid"] = np.array([b"demo_1"])
        if change is not None:
            change(file)
    return path


def test_demonstrations_in_the_order_of_their_numbers(tmp_path):
    report = from_robomimic(write(tmp_path / "a.hdf5", (3,) * 11), tmp_path / "b")
    assert report.num_episodes == 11
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.meta["demo"] == [f"demo_{number}" for number in range(11)]
        assert [episode["states"][0, 0] for episode in buffer] == list(range(11))


def test_what_becomes_of_a_file(tmp_path):
    report = from_robomimic(write(tmp_path / "a.hdf5"), tmp_path / "b")
    assert report.not_known == (
        "whether demonstrations terminated or were truncated: dones may mean either",
        "how 3 episodes ended: they are stored as cut (Episode.complete is False)",
    )
    assert report.left_out == ()
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.metadata.environment["robomimic"]["env_args"]["env_name"] == "Lift"
        assert buffer.meta["filter_keys"] == ["train", "valid", "train"]
        assert buffer.meta["model_file"][1] == "<mujoco model='1'/>"
        for number, episode in enumerate(buffer):
            length = (3, 2, 4)[number]
            assert episode.has_final
            assert (
                episode["observation.robot0_eef_pos"][:, 0].tolist() == (10 * number + np.arange(length + 1)).tolist()
            )
            assert episode["observation.agentview_image"].shape == (length + 1, 8, 8, 3)
            assert episode["reward"].tolist() == list(range(length))
            assert episode["dones"].tolist() == [int(t >= 1) for t in range(length)]
            assert not episode["terminated"].any()


def test_without_rewards_and_next_observations(tmp_path):
    report = from_robomimic(
        write(tmp_path / "a.hdf5", rewards=False, following=False), tmp_path / "b", filter_key="train"
    )
    assert report.not_known[0] == "the rewards of 2 demonstrations"
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert "reward" not in buffer.fieldnames
        assert not any(episode.has_final for episode in buffer)


def test_what_other_projects_write_into_such_files(tmp_path):
    """MimicGen's sources of a demonstration, which have rows of their own, RoboCasa's ``ep_meta``, LIBERO's texts."""

    def change(file):
        data = file["data"]
        data.attrs["problem_info"] = json.dumps({"language_instruction": "put it there"})
        data.attrs["bddl_file_name"] = "kitchen.bddl"
        data.attrs["sizes"] = [1, 2]
        for number in range(3):
            demo = data[f"demo_{number}"]
            demo["src_demo_inds"] = np.arange(2)  # as many as demonstration 1 has steps
            demo["datagen_info/object_poses/cube"] = np.zeros((len(demo["actions"]), 4, 4))
            demo.attrs["ep_meta"] = json.dumps({"lang": f"pick {number}"})
            demo.attrs["init_state"] = np.zeros(3)

    report = from_robomimic(write(tmp_path / "a.hdf5", change=change), tmp_path / "b")
    assert set(report.left_out) == {
        "src_demo_inds: it has no row for each step",
        "the attribute sizes: it is no text",
        "the attribute init_state of demonstrations: no field has it",
    }
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer[0]["datagen_info.object_poses.cube"].shape == (3, 4, 4)
        assert json.loads(buffer.meta["ep_meta"][2]) == {"lang": "pick 2"}
        about = buffer.metadata.environment["robomimic"]
        assert about["problem_info"] == {"language_instruction": "put it there"}
        assert about["bddl_file_name"] == "kitchen.bddl"


def external(file):
    file["data/demo_0/far"] = h5py.ExternalLink("elsewhere.hdf5", "/x")


def test_links_are_not_followed(tmp_path):
    report = from_robomimic(write(tmp_path / "a.hdf5", change=external), tmp_path / "b")
    assert report.left_out == ("data/demo_0/far: it is a link",)


def replaced(name, value):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("data/demo_1/actions", None), "demonstration 'demo_1'"),
        (replaced("data/demo_1/obs/robot0_eef_pos", None), "demonstration 'demo_1'"),
        (replaced("data/demo_1/rewards", np.zeros(5)), "demonstration 'demo_1': 'reward': expected 2 rows"),
        (replaced("data/demo_1/next_obs/robot0_eef_pos", np.zeros((2, 7))), "demonstration 'demo_1': next"),
        (replaced("data/demo_0/actions", None), "demonstration 'demo_0' has no actions"),
        (replaced("data", None), "expected a group 'data'"),
    ],
)
def test_what_does_not_fit_leaves_nothing(tmp_path, change, message):
    path = write(tmp_path / "a.hdf5", change=change)
    with pytest.raises((FieldError, CorruptBufferError), match=message):
        from_robomimic(path, tmp_path / "b")
    assert [each.name for each in tmp_path.iterdir()] == ["a.hdf5"]


def test_other_files_and_keys(tmp_path):
    (tmp_path / "a.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(CorruptBufferError, match="no HDF5 file"):
        from_robomimic(tmp_path / "a.hdf5", tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        from_robomimic(tmp_path / "nothing.hdf5", tmp_path / "b")
    with pytest.raises(FieldError, match=r"filter_key='test': the file has \['train', 'valid'\]"):
        from_robomimic(write(tmp_path / "c.hdf5"), tmp_path / "b", filter_key="test")
