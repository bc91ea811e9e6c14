"""Files of video, contact sheets and plots."""

import json
import sys
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from viewing_helpers import STEPS, make_cameras, make_plain

import gym_replay
from gym_replay import Field, RecordToBuffer, ReplayBuffer, contact_sheet, plot, video
from gym_replay.cli import main

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")


@pytest.fixture(scope="module")
def cameras(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cameras"
    make_cameras(folder, ((60, 80), (20, 30)), 6)
    return folder


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "cartpole"
    with RecordToBuffer(gym.make("CartPole-v1"), folder) as env:
        for seed in range(3):
            env.reset(seed=seed)
            while not any(env.step(0)[2:4]):
                pass
    return folder


def decoded(path):
    """The frames of a video, uint8 (frames, height, width, 3), and its rate."""
    av = pytest.importorskip("av", reason="videos need PyAV (the extra `media`)")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.array(frames), float(container.streams.video[0].average_rate)


def frames_of_gif(path):
    with Image.open(path) as image:
        for at in range(image.n_frames):
            image.seek(at)
            yield np.asarray(image.convert("RGB"))


def seconds_of_gif(path):
    """How long a GIF runs; frames that are equal to the one before are not in it, but their time is."""
    with Image.open(path) as image:
        found = 0
        for at in range(image.n_frames):
            image.seek(at)
            found += image.info["duration"]
        return found / 1000


def size_of(path):
    with Image.open(path) as image:
        return image.size


def only(folder, name):
    """There is this file in a folder and nothing else, hidden or not."""
    assert [path.name for path in folder.iterdir()] == [name]
    return folder / name


def test_an_mp4_of_two_cameras(cameras, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV (the extra `media`)")
    assert video(cameras, tmp_path / "out.mp4", fps=12.5, progress=False) == only(tmp_path, "out.mp4")
    frames, rate = decoded(tmp_path / "out.mp4")
    assert rate == 12.5
    assert frames.shape == (2 * 7, 180, 240 + 2 + 270, 3)
    # the ball goes from the left to the right; each recorded pixel is three pixels wide, of the small camera nine
    at = [frame[90, :240].astype(int).sum(axis=1).argmax() for frame in frames[:7]]
    assert at == sorted(at)
    assert abs(frames[3][90, 120].astype(int) - 255).max() < 40
    assert abs(frames[3][90, 242 + 135].astype(int) - 255).max() < 40


def test_a_gif_with_a_strip(cameras, tmp_path):
    with ReplayBuffer.from_folder(cameras, read_only=True) as buffer:
        video(buffer, tmp_path / "out.gif", episodes=[1], fields=["observation.front"], strip=True, progress=False)
    frames = list(frames_of_gif(only(tmp_path, "out.gif")))
    assert len(frames) == 7
    assert frames[0].shape == (180 + 84, 240, 3)
    with Image.open(tmp_path / "out.gif") as image:
        assert image.info["duration"] == 30
        assert image.info["loop"] == 0
    strips = [frame[180:] for frame in frames]
    assert all(not np.array_equal(one, other) for one, other in pairwise(strips))


def test_rendered_frames(cartpole, tmp_path):
    video(cartpole, tmp_path / "out.gif", episodes=0, render=True, progress=False)
    with ReplayBuffer.from_folder(cartpole, read_only=True) as buffer:
        assert seconds_of_gif(tmp_path / "out.gif") == pytest.approx((len(buffer[0]) + 1) * 0.03)
    assert size_of(tmp_path / "out.gif") == (600, 400)
    contact_sheet(cartpole, tmp_path / "sheet.png", episodes="index < 2", render=True, columns=4)
    assert size_of(tmp_path / "sheet.png")[0] == 4 * (144 + 4) + 2 * 4


def test_nothing_is_rendered_unasked(cartpole, tmp_path, capsys):
    for verb, name in (("video", "out.gif"), ("sheet", "out.png")):
        assert main([verb, str(cartpole), str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert "--render plays the episodes again" in said
        assert "imports the package 'gymnasium'" in said
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_is_not_registered(tmp_path, capsys, monkeypatch):
    (tmp_path / "strange_worlds.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('strange/World-v0', CartPoleEnv)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    gym.register("strange/World-v0", gym.registry["CartPole-v1"].entry_point)
    folder = tmp_path / "data"
    with RecordToBuffer(gym.make("strange/World-v0"), folder) as env:
        env.reset(seed=1)
        while not any(env.step(0)[2:4]):
            pass
    del gym.registry["strange/World-v0"]
    command = ["video", str(folder), str(tmp_path / "out.gif"), "--render"]
    assert main(command) == 2
    assert "strange/World-v0" in capsys.readouterr().err
    assert not (tmp_path / "out.gif").exists()
    assert main([*command, "--import", "strange_worlds"]) == 0
    assert (tmp_path / "out.gif").exists()


def test_a_contact_sheet(cameras, tmp_path):
    contact_sheet(cameras, tmp_path / "sheet.png", columns=3, height=60)
    with Image.open(only(tmp_path, "sheet.png")) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (4 + 24 + 2 * (24 + 64 + 64), 4 + 3 * 94 + 4, 3)
    # the second row of frames begins below its line; the red value of the first pixel is t, the blue one the episode
    top = 4 + 24 + 24
    assert [sheet[top, 4 + at * 84].tolist() for at in range(3)] == [[0, 0, 0], [3, 0, 0], [6, 0, 0]]
    assert sheet[top + 152, 4].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["sheet.jpg", "out.gif"])
def test_encoded_and_grey_frames(tmp_path, name):
    fields = {"pixels": Field("uint8", (40, 40), state=True, codec="zstd"), "reward": "float64"}
    buffer = ReplayBuffer(tmp_path / "data", fields=fields)
    for number in range(25):
        buffer.store_episode(pixels=np.full((4, 40, 40), 9 * number, np.uint8), reward=[0.5, np.nan, np.inf])
    make = contact_sheet if name == "sheet.jpg" else video
    make(buffer, tmp_path / name, **({"strip": True, "progress": False} if make is video else {}))
    if make is contact_sheet:  # of 20 of the 25 episodes
        assert size_of(tmp_path / name)[1] == 4 + 24 + 20 * (24 + 100)
    else:
        assert seconds_of_gif(tmp_path / name) == pytest.approx(25 * 4 * 0.03)


def test_a_file_that_is_there_stays(cameras, tmp_path, capsys):
    (tmp_path / "sheet.png").write_text("mine")
    assert main(["sheet", str(cameras), str(tmp_path / "sheet.png")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert only(tmp_path, "sheet.png").read_text() == "mine"
    assert main(["sheet", str(cameras), str(tmp_path / "sheet.png"), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == only(tmp_path, "sheet.png").stat().st_size
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(gym_replay.StorageError, match="found a folder"):
        contact_sheet(cameras, tmp_path / "folder.png", overwrite=True)


def test_what_fails_leaves_no_file(tmp_path):
    buffer = ReplayBuffer(tmp_path / "data", fields={"pixels": Field("uint8", (16, 16)), "reward": ("float64", 2)})
    buffer.store_episode(pixels=np.zeros((3, 16, 16), np.uint8), reward=np.zeros((3, 2)))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(gym_replay.FieldError, match="one number a step"):
        video(buffer, out / "out.gif", strip=True, progress=False)
    assert list(out.iterdir()) == []
    with pytest.raises(gym_replay.StorageError, match="the folder is missing"):
        video(buffer, out / "missing" / "out.gif", progress=False)


@pytest.mark.parametrize(
    ("make", "name", "options", "error", "said"),
    [
        (video, "out.avi", {}, gym_replay.FieldError, r"ends in \.mp4 or \.gif"),
        (video, "out.gif", {"fps": 0}, gym_replay.FieldError, "fps"),
        (video, "out.gif", {"fields": ["observation.frnt"]}, gym_replay.FieldError, "did you mean 'observation.front'"),
        (video, "out.gif", {"fields": ["action"]}, gym_replay.FieldError, "no pictures"),
        (video, "out.gif", {"fields": "observation.front"}, gym_replay.FieldError, "expected a list"),
        (video, "out.gif", {"fields": ["observation.front"], "render": True}, gym_replay.FieldError, "exclude"),
        (video, "out.gif", {"episodes": 7}, IndexError, "there are 2"),
        (video, "out.gif", {"episodes": []}, gym_replay.EmptyBufferError, "no episode"),
        (contact_sheet, "out.gif", {}, gym_replay.FieldError, r"\.png"),
        (contact_sheet, "out.png", {"columns": 0}, gym_replay.FieldError, "columns"),
        (contact_sheet, "out.png", {"columns": 1000, "height": 4000}, gym_replay.FieldError, "too large"),
    ],
)
def test_wrong_arguments(cameras, tmp_path, make, name, options, error, said):
    with pytest.raises(error, match=said):
        make(cameras, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_buffer(tmp_path):
    buffer = ReplayBuffer(tmp_path / "data", fields={"pixels": Field("uint8", (16, 16)), "reward": "float64"})
    for make, name in ((video, "out.mp4"), (contact_sheet, "out.png")):
        with pytest.raises(gym_replay.EmptyBufferError):
            make(buffer, tmp_path / name)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("missing", ["PIL", "av"])
def test_without_the_extra(cameras, tmp_path, monkeypatch, missing):
    for name in ("av", "PIL", "PIL.Image"):
        if name.startswith(missing):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(gym_replay.MissingExtraError, match=r"pip install 'gym-replay\[media\]'"):
        video(cameras, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


# --- plots ---


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="plots need matplotlib (the extra `media`)")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_plot(tmp_path, matplotlib, suffix):
    make_plain(tmp_path / "data").close()
    out = tmp_path / f"out.{suffix}"
    before = dict(matplotlib.rcParams)
    assert main(["plot", str(tmp_path / "data"), str(out), "--where", "length > 10"]) == 0
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []
    assert not (tmp_path / "data" / "statistics.json").exists()
    if suffix == "png":
        assert size_of(out) == (1100, 4 * 264)


def test_a_plot_of_what_is_strange(tmp_path, matplotlib):
    """Names that another language would read as formulas, values that are no numbers, and a field of no elements."""
    fields = {
        "observation.$x^{$": Field("float32", (2, 3), state=True),
        "observation.none": Field("float32", (0,)),
        "observation.text": Field("uint8", (), ragged=True),
        **STEPS,
    }
    buffer = ReplayBuffer(tmp_path / "data", fields=fields)
    empty = [np.zeros(0, np.uint8)] * 2
    for number in range(120):
        values = np.full((3, 2, 3), [np.nan, np.inf, number][number % 3])
        buffer.store_episode(
            **{"observation.$x^{$": values, "observation.none": np.zeros((2, 0)), "observation.text": empty},
            action=np.zeros((2, 2)),
            reward=[values[0, 0, 0], 1],
            terminated=[False, True],
            truncated=[False, False],
        )
    plot(buffer, tmp_path / "out.png", progress=False)
    assert size_of(tmp_path / "out.png") == (1100, 4 * 264)
    with pytest.raises(gym_replay.EmptyBufferError):
        plot(buffer, tmp_path / "none.png", episodes=[])
