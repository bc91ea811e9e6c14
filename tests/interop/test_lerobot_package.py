"""LeRobot datasets with the real package: it opens what is exported here, and what it wrote is imported."""

from importlib import import_module

import numpy as np
import pytest
import torch
from interop_helpers import by_hand, sights

from gym_replay import Field, ReplayBuffer, export_lerobot, import_lerobot, window_loader

pytest.importorskip("lerobot")
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")

FPS = 10


class VideoReader:
    """What LeRobot 0.4 uses of the class of this name that torchvision had before 0.26, with PyAV as that had it."""

    def __init__(self, path, kind):
        self.container = import_module("av").open(path)
        self._stream = self.container.streams.video[0]

    def seek(self, time, keyframes_only):
        self.container.seek(int(time / self._stream.time_base), stream=self._stream)

    def __iter__(self):
        for frame in self.container.decode(self._stream):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": pixels, "pts": float(frame.pts * self._stream.time_base)}


@pytest.fixture(scope="module", autouse=True)
def package():
    """LeRobot without the network, and beside a newer torch than it pins.

    The names of torchvision's compiled operators are enough for it, and what torchvision has lost since is added.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        patch.setattr(import_module("torchvision.io"), "VideoReader", VideoReader, raising=False)
        yield


def dataset_class():
    return import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset


def opened(folder, **options):
    return dataset_class()("me/it", root=folder, video_backend="pyav", **options)


def as_theirs(image):
    """An image as LeRobot gives it: floats in [0, 1], channels first."""
    return np.moveaxis(image, -1, 0).astype(np.float32) / 255


@pytest.mark.parametrize("video", [False, True, {"codec": "libx264rgb", "crf": 0}], ids=["png", "h264", "lossless"])
def test_its_frames_are_ours(tmp_path, video):
    with sights(tmp_path / "a", 3) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=FPS, task="look", video=video)
        dataset = opened(tmp_path / "b")
        assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, buffer.num_steps, FPS)
        assert {name: dataset.meta.stats[name]["mean"].shape for name in ("action", "observation.state")} == {
            "action": (2,),
            "observation.state": (4,),
        }
        rows = [(number, episode, t) for number, episode in enumerate(buffer) for t in range(len(episode))]
        for index, (number, episode, t) in enumerate(rows):
            frame = dataset[index]
            assert (frame["episode_index"], frame["frame_index"], frame["index"]) == (number, t, index)
            assert frame["task"] == "look"
            assert frame["timestamp"] == np.float32(t / FPS)
            np.testing.assert_array_equal(frame["observation.state"], episode["observation.state"][t])
            np.testing.assert_array_equal(frame["action"], episode["action"][t])
            assert frame["next.reward"] == np.float32(episode["reward"][t])
            assert frame["next.done"] == (episode["terminated"][t] or episode["truncated"][t])
            assert frame["next.truncated"] == episode["truncated"][t]
            seen, image = frame["observation.images.camera.top"].numpy(), episode["observation.camera.top"][t]
            np.testing.assert_allclose(seen, as_theirs(image), atol=0.1 if video is True else 0)


@pytest.mark.parametrize("video", [False, {"codec": "libx264rgb", "crf": 0}], ids=["png", "lossless"])
def test_its_windows_are_those_of_our_loader(tmp_path, video):
    """Past the last frame an observation is o_T here and padding there, so that only earlier ones are asked for."""
    offsets = {"action": (0, 1, 2), "observation.camera.top": (-1, 0), "observation.state": (-2, 0)}
    keys = {"observation.camera.top": "observation.images.camera.top"}
    deltas = {keys.get(name, name): [step / FPS for step in steps] for name, steps in offsets.items()}
    with sights(tmp_path / "a", 3) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=FPS, task="look", video=video)
        dataset = opened(tmp_path / "b", delta_timestamps=deltas)
        loader = window_loader(buffer, 1000, offsets=offsets, batch_format="lerobot")
        ours = next(iter(loader))
        for index in range(len(dataset)):
            theirs = dataset[index]
            for key in deltas:
                np.testing.assert_array_equal(theirs[f"{key}_is_pad"], ours[f"{key}_is_pad"][index])
                np.testing.assert_allclose(theirs[key], ours[key][index], atol=1e-6)


def test_its_policy_takes_a_step(tmp_path):
    """ACT of LeRobot on a dataset that was exported, with the features and statistics that it reads from it."""
    with sights(tmp_path / "a", 3) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=FPS, task="look")
    dataset = opened(tmp_path / "b", delta_timestamps={"action": [step / FPS for step in range(8)]})
    try:
        convert = import_module("lerobot.datasets.utils").dataset_to_policy_features
    except AttributeError:
        convert = import_module("lerobot.utils.feature_utils").dataset_to_policy_features
    features = convert(dataset.meta.features)
    types = import_module("lerobot.configs.types").FeatureType
    config = import_module("lerobot.policies.act.configuration_act").ACTConfig(
        input_features={key: one for key, one in features.items() if one.type is not types.ACTION},
        output_features={key: one for key, one in features.items() if one.type is types.ACTION},
        chunk_size=8,
        n_action_steps=8,
        pretrained_backbone_weights=None,
        dim_model=32,
        n_heads=2,
        dim_feedforward=64,
        n_encoder_layers=1,
        n_decoder_layers=1,
        n_vae_encoder_layers=1,
        device="cpu",
    )
    policy = import_module("lerobot.policies.act.modeling_act").ACTPolicy(config)
    make = import_module("lerobot.policies.act.processor_act").make_act_pre_post_processors
    before, _ = make(config, dataset_stats=dataset.meta.stats)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    loss, _ = policy.forward(before(batch))
    loss.backward()
    optimizer.step()
    assert np.isfinite(loss.item())


def written_by_it(folder, *, use_videos, episodes=(4, 6)):
    """A dataset that LeRobot's own code wrote, and the frames that went into it."""
    dtype = "video" if use_videos else "image"
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "observation.images.top": {"dtype": dtype, "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["l", "r"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    }
    dataset = dataset_class().create("me/its", FPS, features, root=folder, use_videos=use_videos, robot_type="arm")
    rng = np.random.default_rng(0)
    frames = []
    for number, length in enumerate(episodes):
        for t in range(length):
            image = np.full((48, 64, 3), 20 * t + 10 * number, np.uint8)
            image[: 4 * (t + 1)] = 200
            frame = {
                "observation.state": rng.normal(size=3).astype(np.float32),
                "observation.images.top": image,
                "action": rng.normal(size=2).astype(np.float32),
                "next.reward": rng.normal(size=1).astype(np.float32),
            }
            frames.append((number, t, frame))
            dataset.add_frame({**frame, "task": f"task {number}"})
        dataset.save_episode()
    finalize = getattr(dataset, "finalize", None)
    if finalize is not None:
        finalize()
    return frames


@pytest.mark.parametrize("use_videos", [False, True], ids=["png", "av1"])
def test_what_it_wrote_is_imported_frame_by_frame(tmp_path, use_videos):
    frames = written_by_it(tmp_path / "a", use_videos=use_videos)
    report = import_lerobot(tmp_path / "a", tmp_path / "b")
    assert (report.num_episodes, report.num_steps) == (2, len(frames))
    dataset = opened(tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.meta["task"] == ["task 0", "task 1"]
        assert not any(episode.has_final or episode.complete for episode in buffer)
        for index, (number, t, frame) in enumerate(frames):
            episode, theirs = buffer.episode(number), dataset[index]
            np.testing.assert_array_equal(episode["observation.state"][t], frame["observation.state"])
            np.testing.assert_array_equal(episode["action"][t], frame["action"])
            assert episode["reward"][t] == frame["next.reward"][0]
            image = episode["observation.images.top"][t]
            np.testing.assert_array_equal(as_theirs(image), theirs["observation.images.top"])
            np.testing.assert_allclose(image.astype(int), frame["observation.images.top"], atol=30 * use_videos)


def test_an_imported_dataset_goes_back_to_it(tmp_path):
    """Keys, tasks and the rate of frames are those of the dataset that it came from."""
    frames = written_by_it(tmp_path / "a", use_videos=False)
    import_lerobot(tmp_path / "a", tmp_path / "b")
    export_lerobot(tmp_path / "b", tmp_path / "c", video=False)
    before, after = opened(tmp_path / "a"), opened(tmp_path / "c")
    assert after.fps == before.fps
    for index in range(len(frames)):
        one, other = before[index], after[index]
        assert one.keys() <= other.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])


def test_single_numbers_and_arrays_of_several_axes(tmp_path):
    """Discrete actions are whole numbers of one axis there; features of two and three axes come in their shape."""
    fields = {
        "observation": Field("float64", (2, 3), state=True),
        "extra": Field("int16", (2, 3, 4)),
        "action": "int",
        "reward": Field("float32", (1,)),
    }
    with ReplayBuffer(tmp_path / "a", fields=fields) as buffer:
        rng = np.random.default_rng(0)
        buffer.store_episode(
            observation=rng.normal(size=(5, 2, 3)),
            extra=rng.integers(-9, 9, (4, 2, 3, 4)),
            action=[3, 1, 2, 0],
            reward=np.ones((4, 1), np.float32),
        )
        export_lerobot(buffer, tmp_path / "b", fps=1, task="", keys={"extra": "observation.grid"})
        episode = buffer.episode(0)
        for t, frame in enumerate(opened(tmp_path / "b")):
            np.testing.assert_allclose(frame["observation.state"], episode["observation"][t], rtol=1e-6)
            np.testing.assert_array_equal(frame["observation.grid"], episode["extra"][t])
            assert frame["action"] == episode["action"][t]


def test_its_replay_sends_what_was_recorded(tmp_path, monkeypatch):
    """Each number of an action goes to the motor of its name."""
    pytest.importorskip("cv2")  # which its robots import
    replaying = import_module("lerobot.scripts.lerobot_replay")

    class Robot:
        sent, is_connected = [], False

        def connect(self):
            self.is_connected = True

        def disconnect(self):
            self.is_connected = False

        def get_observation(self):
            return {}

        def send_action(self, action):
            assert self.is_connected
            self.sent.append({name: float(value) for name, value in action.items()})

    robot = Robot()
    monkeypatch.setattr(replaying, "make_robot_from_config", lambda config: robot)
    with sights(tmp_path / "a", 2) as buffer:
        names = ("pan.pos", "lift.pos")
        export_lerobot(buffer, tmp_path / "b", fps=1000, task="look", video=False, element_names={"action": names})
        dataset = replaying.DatasetReplayConfig("me/it", episode=1, root=tmp_path / "b")
        replaying.replay(replaying.ReplayConfig(robot=None, dataset=dataset, play_sounds=False))
        assert robot.sent == [dict(zip(names, row, strict=True)) for row in buffer.episode(1)["action"].tolist()]


def test_statistics_are_near_its_own(tmp_path):
    with by_hand(tmp_path / "a", [40, 60], [True, True]) as buffer:
        export_lerobot(buffer, tmp_path / "b", fps=FPS, task="x")
        values = np.concatenate([episode["observation"][: len(episode)] for episode in buffer])
    own = import_module("lerobot.datasets.compute_stats").get_feature_stats(values, axis=0, keepdims=False)
    found = opened(tmp_path / "b").meta.stats["observation.state"]
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(found[name], own[name], rtol=1e-6)
    assert found["count"] == own["count"]
