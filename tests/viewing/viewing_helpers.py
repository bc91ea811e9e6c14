"""What the tests of the page share: buffers to look at, the process that serves them, and a browser."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gym_replay import Field, ReplayBuffer

SERVE = """
import sys
import gym_replay
for line in sys.stdin:
    try:
        print(gym_replay.view(line.strip(), browser=False).address, flush=True)
    except Exception as error:
        print("error:", str(error).splitlines()[0], flush=True)
"""
PATIENCE = 20.0


class Served:
    """A process that serves folders."""

    def __init__(self):
        environment = {"MUJOCO_GL": "egl", **os.environ}  # there is no screen
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def address(self, folder):
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def stop(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def find_chromium():
    """The browser and its driver; the test is skipped where there is none."""
    selenium = pytest.importorskip("selenium", reason="selenium drives the browser")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("there is no Chromium here (apt-get install chromium chromium-driver)")
    return selenium, browser, driver


class Browser:
    """A headless Chromium that reaches nothing but 127.0.0.1."""

    def __init__(self):
        _, browser, driver = find_chromium()
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.size(1440, 900)

    def size(self, width, height, *, dark=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, address):
        self.driver.get(address)
        self.wait(lambda: self.has(".gr-counts"))

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def has(self, selector):
        return bool(self.all(selector))

    def text(self, selector):
        """What is written there, of each place on a line of its own."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim()).join('\\n')"
        return self.driver.execute_script(script, selector)

    def cells(self, column):
        """The cells of a column of the table."""
        script = """
        const name = cell => cell.innerText.replace('arrow_upward', '').trim();
        const at = [...document.querySelectorAll('.gr-table thead th')].map(name).indexOf(arguments[0]);
        return [...document.querySelectorAll('.gr-table tbody tr')].map(e => e.children[at]?.innerText.trim());
        """
        return self.driver.execute_script(script, column)

    def click(self, selector, at=0):
        self.wait(lambda: len(self.all(selector)) > at)
        self.driver.execute_script("arguments[0].click()", self.all(selector)[at])

    def press(self, keys):
        self.driver.find_element("css selector", "body").send_keys(keys)

    def wait(self, condition, seconds=PATIENCE):
        until = time.monotonic() + seconds
        while not (found := self._holds(condition)):
            assert time.monotonic() < until, f"waited in vain; the page shows:\n{self.text('body')[:2000]}"
            time.sleep(0.03)
        return found

    def _holds(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return condition()
        except StaleElementReferenceException:
            return False

    def wait_for_episode(self, number):
        self.wait(lambda: re.search(rf"Episode {number}\b", self.text(".gr-episode")))
        self.wait(lambda: self.has(".gr-curve canvas"))

    def shoot(self, name):
        """Keep a picture of the page as it is now, where somebody wants to have it."""
        if folder := os.environ.get("GYM_REPLAY_SCREENSHOTS"):
            time.sleep(0.7)  # transitions end
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def faults(self):
        """What the browser complained of since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


STEPS = {"action": Field("float32", (2,)), "reward": "float64", "terminated": "bool", "truncated": "bool"}


def make_plain(folder, lengths=(12, 30, 7, 30, 21), **meta_fields):
    """Episode k has the return ``lengths[k]``; every second one is truncated."""
    fields = {"observation": Field("float32", (3,), state=True), **STEPS}
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"task": "str", **meta_fields})
    for number, length in enumerate(lengths):
        add_plain(buffer, number, length)
    return buffer


def add_plain(buffer, number, length, **meta):
    rng = np.random.default_rng(number)
    last = np.arange(length) == length - 1
    buffer.store_episode(
        observation=rng.normal(size=(length + 1, 3)).cumsum(0),
        action=rng.uniform(-1, 1, (length, 2)),
        reward=np.ones(length),
        terminated=last & (number % 2 == 0),
        truncated=last & (number % 2 == 1),
        task=["reach", "grasp"][number % 2],
        **meta,
    )


def make_cameras(folder, sizes=((480, 640), (240, 320)), length=40):
    """Two cameras; the red value of the first one's first pixel is t."""
    fields = {
        f"observation.{name}": Field("uint8", (*size, 3), state=True)
        for name, size in zip(("front", "wrist"), sizes, strict=True)
    }
    buffer = ReplayBuffer(folder, fields={**fields, **STEPS})
    for number in range(2):
        frames = {}
        for name, (height, width) in zip(fields, sizes, strict=True):
            y, x = np.mgrid[0:height, 0:width]
            frames[name] = np.empty((length + 1, height, width, 3), np.uint8)
            for t in range(length + 1):
                frames[name][t, ..., 0] = t
                frames[name][t, ..., 1] = 255 * x / width
                frames[name][t, ..., 2] = 255 * y / height
                frames[name][t, (x - width * t / length) ** 2 + (y - height / 2) ** 2 < (height / 12) ** 2] = 255
                frames[name][t, 0, 0] = t, 0, number
        last = np.arange(length) == length - 1
        buffer.store_episode(
            action=np.zeros((length, 2)), reward=last * 1.0, terminated=last, truncated=last & False, **frames
        )
    buffer.close()
