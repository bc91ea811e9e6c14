"""What notebooks show of buffers, episodes, statistics and loaders, and the names that they complete."""

import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from gym_replay import ConcatReplayBuffer, Field, ReplayBuffer, n_step_loader, statistics

HOSTILE = "<script>alert('x')</script><img src=x onerror=\"alert(1)\">\x1b[31m\n" + "y" * 5000
TAGS = {"div", "b", "table", "thead", "tbody", "tr", "td", "th", "img"}


class Parsed(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.attributes = [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        self.sources += [value for name, value in attributes if name == "src"]

    def handle_data(self, data):
        self.text += f"{data} "


def parsed(shown):
    """The parsed HTML of an object, which is made of harmless tags only."""
    found = Parsed(shown._repr_html_())
    assert set(found.tags) <= TAGS
    assert set(found.attributes) <= {"style", "src", "title"}
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    return found


def make(folder, *, count=2, codec=None):
    fields = {
        "front": Field("uint8", (32, 40, 3), state=True, codec=codec),
        "wrist": Field("uint8", (16, 16), state=True),
        "text": Field("uint8", (), ragged=True),
        "reward": "float64",
    }
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"task": "str", "goal": ("float32", 6)})
    for number in range(count):
        buffer.store_episode(
            front=np.full((6, 32, 40, 3), number, np.uint8),
            wrist=np.zeros((6, 16, 16), np.uint8),
            text=[np.frombuffer(b"abc", np.uint8)] * 5,
            reward=np.ones(5),
            task=HOSTILE,
            goal=np.arange(6),
        )
    return buffer


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_an_episode_has_thumbnails_of_each_camera(tmp_path, codec):
    found = parsed(make(tmp_path / "data", codec=codec)[1])
    assert len(found.sources) == 2 * 6
    assert "Episode 1, 5 steps" in found.text
    assert "(6, 32, 40, 3)" in found.text
    assert "(5, ...)" in found.text
    assert "[0 1 2 3 …] (6,)" in found.text
    assert "alert('x')" in found.text
    assert "y" * 300 not in found.text


def test_without_pillow_there_are_no_thumbnails(tmp_path, monkeypatch):
    episode = make(tmp_path / "data")[0]
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    found = parsed(episode)
    assert found.sources == []
    assert "(6, 32, 40, 3)" in found.text


def test_an_episode_that_was_evicted_is_still_shown(tmp_path):
    fields = {"front": Field("uint8", (16, 16)), "reward": "float64"}
    buffer = ReplayBuffer(tmp_path, 1, 4, fields=fields, meta_fields={"task": "str"}, circular=True)
    one = {"front": np.zeros((3, 16, 16), np.uint8), "reward": np.ones(3), "task": HOSTILE}
    buffer.store_episode(**one)
    episode = buffer[0]
    for _ in range(3):
        buffer.store_episode(**one)
    assert "Episode 0" in parsed(episode).text


def test_buffers(tmp_path):
    folder = tmp_path / "<b>&'\""
    with make(folder) as buffer:
        found = parsed(buffer)
        assert "2 episodes, 10 steps" in found.text
        assert "front uint8 (32, 40, 3) state" in found.text
        assert "text uint8 () ragged" in found.text
        assert "task str" in found.text
    assert "closed" in parsed(buffer).text
    with ConcatReplayBuffer([folder]) as both:
        assert "1 buffers, 2 episodes" in parsed(both).text
    assert "closed" in parsed(both).text


def test_an_empty_buffer_with_many_fields(tmp_path):
    found = parsed(ReplayBuffer(tmp_path, fields={f"field{at}": "float32" for at in range(140)}))
    assert "0 episodes" in found.text
    assert "… 40 more" in found.text


def test_statistics(tmp_path):
    found = parsed(statistics(make(tmp_path / "data"), ["reward", "front"], progress=False))
    assert "reward 1 " in found.text
    assert "[0.5 0.5 0.5] (1, 1, 3)" in found.text


def test_a_loader(tmp_path):
    loader = n_step_loader(make(tmp_path / "data"), 4, current_fields=["reward"])
    found = parsed(loader)
    assert "ReplayLoader: 3 batches of 4 of 10 samples" in found.text
    assert "reward float32 (4,)" in found.text

    def fail(batch):
        raise RuntimeError(HOSTILE)

    found = parsed(n_step_loader(make(tmp_path / "other"), 4, current_fields=["reward"], transform=fail))
    assert "none can be looked at" in found.text


def test_names_are_completed(tmp_path):
    buffer = make(tmp_path / "data")
    assert buffer[0]._ipython_key_completions_() == ["front", "wrist", "text", "reward"]
    assert buffer.meta._ipython_key_completions_() == ["task", "goal"]
    batch = next(iter(n_step_loader(buffer, 4, current_fields=["reward"])))
    assert batch._ipython_key_completions_() == list(batch)
