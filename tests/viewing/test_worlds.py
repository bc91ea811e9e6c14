"""The page over recordings of environments that nobody here wrote."""

import gymnasium as gym
import pytest

from gym_replay import RecordToBuffer


def record(env, folder, steps=25, **options):
    with RecordToBuffer(env, folder, **options) as env:
        env.reset(seed=3)
        env.action_space.seed(3)
        for _ in range(steps):
            if any(env.step(env.action_space.sample())[2:4]):
                env.reset()
    return folder


def open_page(served, browser, folder):
    browser.open(served.address(folder))
    browser.wait_for_episode(0)


def test_minigrid(tmp_path, served, browser):
    pytest.importorskip("minigrid")
    from minigrid.wrappers import RGBImgPartialObsWrapper

    env = RGBImgPartialObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0"))
    open_page(served, browser, record(env, tmp_path / "minigrid"))
    assert "“use the key to open the door" in browser.text(".gr-values")
    browser.wait(lambda: browser.has(".gr-frame img"))
    browser.shoot("minigrid-1440")


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_atari(tmp_path, served, browser, codec):
    ale_py = pytest.importorskip("ale_py")
    options = {}
    if codec is not None:
        pytest.importorskip("numcodecs")
        options = {"codecs": {"observation": codec}}
    gym.register_envs(ale_py)
    open_page(served, browser, record(gym.make("ALE/Breakout-v5"), tmp_path / "atari", **options))
    width = "return document.querySelector('.gr-frame img')?.naturalWidth"
    browser.wait(lambda: browser.driver.execute_script(width) == 160)
    browser.shoot(f"atari-{codec or 'raw'}-1440")


def test_ant(tmp_path, served, browser):
    pytest.importorskip("mujoco")
    open_page(served, browser, record(gym.make("Ant-v5", max_episode_steps=12), tmp_path / "ant"))
    assert "the first 6 of 8" in browser.text(".gr-curve-name")
    browser.click(".gr-noframes button")
    browser.click(".gr-dialog button", 1)
    browser.wait(lambda: "13 frames" in browser.text(".gr-progress") or "Not rendered" in browser.text(".gr-noframes"))
    if browser.has(".gr-noframes"):
        pytest.skip(browser.text(".gr-noframes"))
    width = "return document.querySelector('.gr-frame img')?.naturalWidth"
    browser.wait(lambda: browser.driver.execute_script(width) == 480)
    browser.shoot("ant-1440")
