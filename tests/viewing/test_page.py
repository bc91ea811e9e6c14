"""The page in a real browser: what is looked for is there, what is clicked on happens."""

import io
import json
import re
import threading
import time
import urllib.request

import gymnasium as gym
import numpy as np
import pytest
from viewing_helpers import add_plain, make_cameras, make_plain

from gym_replay import Field, RecordToBuffer, ReplayBuffer, select

RIGHT, DOWN, END = "\ue014", "\ue015", "\ue010"


@pytest.fixture
def plain(tmp_path, served, browser):
    """Five episodes, the first of which is open."""
    with make_plain(tmp_path / "plain"):
        pass
    browser.open(served.address(tmp_path / "plain"))
    browser.wait_for_episode(0)
    return tmp_path / "plain"


def write_condition(browser, text):
    (field,) = browser.all(".gr-mono input")
    field.send_keys("\ue009a\ue000", "\ue003", text)  # Ctrl-A, Ctrl up, Delete


def test_episodes_are_listed_filtered_and_sorted(plain, browser):
    assert "5 episodes" in browser.text(".gr-counts")
    assert browser.cells("length") == ["12", "30", "7", "30", "21"]
    assert browser.cells("ended")[:2] == ["terminated", "truncated"]
    write_condition(browser, "length > 10 and task == 'reach'")
    browser.wait(lambda: browser.cells("id") == ["0", "4"])
    assert "2 of 5 episodes" in browser.text(".gr-left")
    write_condition(browser, "lenght > 10")
    browser.wait(lambda: "did you mean 'length'" in browser.text(".gr-fault"))
    write_condition(browser, "length > 0")
    browser.wait(lambda: len(browser.cells("id")) == 5)
    browser.click(".gr-table thead th", 2)
    browser.wait(lambda: browser.cells("length") == ["7", "12", "21", "30", "30"])
    browser.click(".gr-table thead th", 2)
    browser.wait(lambda: browser.cells("length") == ["30", "30", "21", "12", "7"])


def test_a_bar_chooses_its_episodes(plain, browser):
    from selenium.webdriver import ActionChains

    chart = browser.wait(lambda: browser.all(".gr-histogram canvas"))[1]
    # Lengths are from 7 to 30, one bar each; the last one is that of 30.
    ActionChains(browser.driver).move_to_element_with_offset(chart, chart.size["width"] // 2 - 7, 0).click().perform()
    browser.wait(lambda: browser.cells("length") == ["30", "30"])
    assert "30 ≤ length < 31" in browser.text(".gr-chip")
    browser.click(".gr-chip button")
    browser.wait(lambda: len(browser.cells("length")) == 5)


def test_keys_step_play_and_go_to_other_episodes(plain, browser):
    browser.press(RIGHT + RIGHT)
    browser.wait(lambda: browser.text(".gr-clock") == "2 / 12")
    browser.press(DOWN)
    browser.wait_for_episode(1)
    browser.press(" ")
    browser.wait(lambda: browser.text(".gr-clock") == "30 / 30")  # at 30 steps a second, to the end
    assert "truncated" in browser.text(".gr-badge")
    assert browser.has(".gr-mark.truncated")


def test_labels_are_on_the_disk_at_once_and_are_conditions(plain, browser, tmp_path):
    browser.press("g")
    browser.wait(lambda: browser.cells("label")[0] == "good")
    (labels,) = json.loads((plain / "labels.json").read_text())["labels"].values()
    assert labels == {"0": "good"}
    browser.press(DOWN)
    browser.wait_for_episode(1)
    browser.press("l")
    browser.wait(lambda: browser.driver.switch_to.active_element.tag_name == "input")
    browser.driver.switch_to.active_element.send_keys("slips <i>once</i>", "\ue007")
    browser.wait(lambda: browser.cells("label")[1] == "slips <i>once</i>")
    write_condition(browser, "label == 'good'")
    browser.wait(lambda: browser.cells("id") == ["0"])
    assert len(select(plain, tmp_path / "good", where="label == 'good'", progress=False)) == 1


def test_labels_become_a_meta_field(plain, browser):
    browser.press("b")
    browser.wait(lambda: "1 labelled" in browser.text(".gr-labelled"))
    browser.click(".gr-labelled")
    browser.click(".gr-dialog button", 1)
    browser.wait(lambda: browser.text(".gr-labelled") == "")
    assert browser.cells("label")[0] == "bad"
    with ReplayBuffer.from_folder(plain) as buffer:
        assert [episode.meta["label"] for episode in buffer] == ["bad", "", "", "", ""]


def test_two_episodes_are_compared(plain, browser):
    browser.press(RIGHT * 3)
    browser.press("c")
    browser.wait(lambda: "choose an episode" in browser.text(".gr-right"))
    browser.click(".gr-table tbody tr", 3)
    browser.wait(lambda: browser.text(".gr-episode") == "A · Episode 0\nB · Episode 3")
    assert browser.text(".gr-clock") == "3 / 30"
    assert browser.has(".gr-values.two")
    browser.shoot("compare-1440")
    browser.press("c")
    browser.wait(lambda: browser.text(".gr-episode") == "Episode 0")


def test_what_is_recorded_meanwhile_appears(tmp_path, served, browser):
    with make_plain(tmp_path / "live", lengths=()) as buffer:
        browser.open(served.address(tmp_path / "live"))
        browser.wait(lambda: "0 episodes" in browser.text(".gr-counts"))
        browser.shoot("empty-1440")
        add_plain(buffer, 0, 5)
        browser.wait_for_episode(0)
        add_plain(buffer, 1, 6)
        browser.wait(lambda: browser.cells("length") == ["5", "6"])
        assert "2 episodes" in browser.text(".gr-counts")


def frame_of(browser, at=0):
    """The pixels of a frame as they are on the screen."""
    Image = pytest.importorskip("PIL.Image")
    source = browser.all(".gr-frame img")[at].get_attribute("src")
    with urllib.request.urlopen(source) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())))


def test_cameras_move_in_step(tmp_path, served, browser):
    make_cameras(tmp_path / "cameras", sizes=((96, 128), (48, 64)))
    browser.open(served.address(tmp_path / "cameras"))
    browser.wait(lambda: len(browser.all(".gr-frame img")) == 2)
    browser.press(RIGHT * 5)
    browser.wait(lambda: browser.text(".gr-clock") == "5 / 40")
    browser.wait(lambda: all(frame.get_attribute("src").endswith("/5") for frame in browser.all(".gr-frame img")))
    for at in range(2):
        assert frame_of(browser, at)[0, 0].tolist() == [5, 0, 0]  # bit for bit
    browser.press(END)
    browser.wait(lambda: browser.text(".gr-clock") == "40 / 40")  # o_T


def test_frames_are_rendered_anew_once_one_agrees(tmp_path, served, browser):
    pytest.importorskip("pygame")
    with RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "cartpole") as env:
        env.reset(seed=0)
        while not any(env.step(0)[2:4]):
            pass
    browser.open(served.address(tmp_path / "cartpole"))
    browser.wait_for_episode(0)
    assert not browser.has(".gr-frame")
    browser.click(".gr-noframes button")
    browser.wait(lambda: "imports the package 'gymnasium'" in browser.text(".gr-dialog"))
    browser.click(".gr-dialog button", 1)
    browser.wait(lambda: "not recorded" in browser.text(".gr-progress"))
    browser.wait(lambda: frame_of(browser).shape == (400, 600, 3))


HOSTILE = "<img src=x onerror='window.hit=1'><script>window.hit=1</script>{{ 7*7 }}"


def test_strings_are_text(tmp_path, served, browser):
    names = {"label{{7-7}}": "str", "$(touch x)": "str"}
    with ReplayBuffer(
        tmp_path / "<u>odd",
        fields={"{{7-7}}": "float64", "%3Ay": Field("float64", (2,)), "said": Field("uint8", ragged=True)},
        meta_fields=names,
    ) as buffer:
        said = [np.frombuffer(HOSTILE.encode(), np.uint8)] * 3
        values = {"label{{7-7}}": HOSTILE, "$(touch x)": "<b>bold</b>"}
        buffer.store_episode(**{"{{7-7}}": np.arange(3.0), "%3Ay": np.ones((3, 2)), "said": said}, **values)
    browser.open(served.address(tmp_path / "<u>odd"))
    browser.wait_for_episode(0)
    page = browser.text("body")
    for text in ("<img src=x", "{{7-7}}", "<b>bold</b>", "{{ 7*7 }}"):
        assert text in page
    assert "<u>odd" in browser.text(".gr-path")
    assert browser.driver.execute_script("return window.hit ?? document.querySelectorAll('b, u').length") == 0


def test_outliers_have_reasons(tmp_path, served, browser):
    with make_plain(tmp_path / "far", lengths=(*range(20, 32), 400)) as buffer:
        add_plain(buffer, 20, 24)
        buffer.update(episodes=3, reward=np.where(np.arange(23) == 4, np.nan, 1.0))
    browser.open(served.address(tmp_path / "far"))
    browser.wait_for_episode(0)
    browser.click(".q-tab", 1)
    browser.wait(lambda: "lie far out" in browser.text(".gr-outliers"))
    reasons = browser.text(".gr-outliers")
    assert re.search(r"Episode 12\s.*deviations above the median", reasons)
    assert re.search(r"Episode 3\s(.*\s)*reward: 1 NaN of 23 values", reasons)
    browser.shoot("outliers-1440")
    browser.click(".gr-outlier")
    browser.wait(lambda: not browser.text(".gr-episode").startswith("Episode 0"))


def test_what_is_damaged_is_said_to_be(tmp_path, served, browser):
    with make_plain(tmp_path / "damaged", lengths=(5, 6)) as buffer:
        buffer.add_field("said", Field("uint8", ragged=True))
    (spans,) = (tmp_path / "damaged").rglob("said.spans.npy")
    with open(spans, "r+b") as file:
        file.seek(128 + 16)  # row 1: its first element and how many there are
        file.write(b"\x7f" * 16)
    browser.open(served.address(tmp_path / "damaged"))
    browser.wait_for_episode(0)
    browser.press(RIGHT)
    browser.wait(lambda: "said.spans.npy" in browser.text(".gr-values"))
    browser.shoot("damaged-1440")
    browser.press(DOWN)
    browser.wait_for_episode(1)  # which is sound
    (tmp_path / "damaged" / "metadata.json").write_text("{")
    assert served.address(tmp_path / "damaged").startswith("error: ")


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (1440, True), (800, False), (800, True)])
def test_it_fits(tmp_path, served, browser, width, dark):
    """Nothing is wider than the window."""
    make_cameras(tmp_path / "cameras", sizes=((96, 128), (48, 64)))
    browser.size(width, 900, dark=dark)
    browser.open(served.address(tmp_path / "cameras"))
    browser.wait_for_episode(0)
    browser.wait(lambda: len(browser.all(".gr-frame img")) == 2)
    assert browser.driver.execute_script("return document.body.classList.contains('body--dark')") is dark
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width
    heights = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().height)"
    for selector in (".gr-table .q-table__middle", ".gr-histogram", ".gr-frame", ".gr-curve", ".gr-values"):
        assert min(browser.driver.execute_script(heights, selector)) > 60, selector
    browser.shoot(f"cameras-{width}-{'dark' if dark else 'light'}")


def test_many_episodes_come_in_pages(tmp_path, served, browser):
    with ReplayBuffer(tmp_path / "many", fields={"x": "float64"}) as buffer, buffer.batched_episode(2000):
        for _ in range(3):
            buffer.store_batch(x=np.zeros(2000))
    browser.open(served.address(tmp_path / "many"))
    browser.wait(lambda: "2,000 episodes" in browser.text(".gr-counts"))
    browser.wait(lambda: len(browser.cells("id")) == 50)
    browser.click(".q-table__bottom button", 2)
    browser.wait(lambda: browser.cells("id")[0] == "50")


def test_reading_goes_on_while_it_plays(tmp_path, served, browser):
    """The page answers frames from several threads at once."""
    make_cameras(tmp_path / "cameras", sizes=((96, 128), (48, 64)))
    browser.open(served.address(tmp_path / "cameras"))
    browser.wait(lambda: len(browser.all(".gr-frame img")) == 2)
    source = browser.all(".gr-frame img")[0].get_attribute("src").rpartition("/")[0]
    found = {}

    def read(t):
        with urllib.request.urlopen(f"{source}/{t}") as answer:
            found[t] = answer.read()

    threads = [threading.Thread(target=read, args=(t,)) for t in range(41)]
    browser.press(" ")
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 41
    time.sleep(0.1)
