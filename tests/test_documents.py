"""The documents: their code runs as it is written, their links lead somewhere, and the site has every page and name."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

import gym_replay
from gym_replay.wrappers import parallel, vector

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
BLOCK = re.compile(r"^```(?:python|\{code-cell\} ipython3)\n(.*?)^```", re.S | re.M)


def blocks_of(name):
    return BLOCK.findall((ROOT / name).read_text())


def run(name, namespace, blocks):
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, block {number}", "exec"), namespace)


@pytest.fixture
def ten_lines(tmp_path, monkeypatch):
    """What the README's ten lines leave behind: the folder ``data/cartpole``, and the names that they define."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    run("README.md", namespace, blocks_of("README.md"))
    assert (tmp_path / "data" / "cartpole" / "metadata.json").exists()
    return namespace


def test_the_readme_runs_and_is_short(ten_lines):
    assert len(ten_lines["buffer"]) == 10
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pytest.mark.parametrize("name", ["recording", "loading", "storing"])
def test_a_page_runs_from_top_to_bottom(name, ten_lines):
    blocks = blocks_of(f"docs/{name}.md")
    assert len(blocks) >= 5
    run(name, ten_lines, blocks)
    if name == "storing":
        assert len(ten_lines["reader"]) == 5


@pytest.mark.parametrize("name", NAMES)
def test_code_is_python(name):
    """Also of pages whose blocks are parts of programs, and of tutorials, which run when the site is built."""
    for block in blocks_of(name):
        shell = block.startswith("%%bash")
        lines = block.splitlines()
        ast.parse("\n".join("pass" if shell or line.lstrip().startswith(("!", ":tags:")) else line for line in lines))


def anchors_of(path):
    """The anchors that GitHub and the site give to a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#{1,6} (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.S | re.M)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def test_every_page_is_reached_from_a_toctree():
    reached = set()
    for page in DOCS.rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(), re.S | re.M):
            for entry in [line for line in tree.splitlines() if line and not line.startswith(":")]:
                reached |= set(page.parent.glob(f"{entry}.md"))
    assert set(DOCS.rglob("*.md")) - reached == {DOCS / "index.md"}


def test_the_reference_has_every_public_name():
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    documented = re.findall(r"^\.\. auto(?:class|function|exception):: ([\w.]+)$", text, re.M)
    public = {f"gym_replay.{name}" for name in gym_replay.__all__}
    public |= {f"{module.__name__}.{name}" for module in (vector, parallel) for name in module.__all__}
    assert public - set(documented) == set()
    assert len(documented) == len(set(documented))


def test_every_example_is_on_the_site():
    text = (DOCS / "examples.md").read_text()
    programs = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*/__init__.py")]
    names = [path.relative_to(ROOT).as_posix() for path in programs]
    assert not [name for name in names if f"](../{name})" not in text]


def test_the_replay_buffer_of_stable_baselines3_becomes_a_buffer(tmp_path, monkeypatch):
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    env = gym.make("Pendulum-v1", max_episode_steps=7)
    old = buffers.ReplayBuffer(50, env.observation_space, env.action_space, device="cpu")
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        done = np.array([terminated or truncated])
        old.add(observation, following, action, np.array([reward]), done, [{"TimeLimit.truncated": truncated}])
        observation = env.reset()[0] if done else following
    monkeypatch.chdir(tmp_path)
    [block] = [block for block in blocks_of("docs/coming-from.md") if "from-sb3" in block]
    run("docs/coming-from.md", {"model": SimpleNamespace(replay_buffer=old)}, [block])
    lengths = gym_replay.ReplayBuffer.from_folder("data/from-sb3").episode_lens
    assert lengths.tolist() == [7, 7, 6]
