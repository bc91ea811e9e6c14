"""Ray Data: the samples of all tasks together are those of a loader, from folders and from addresses."""

import numpy as np
import pytest
from remote_helpers import make

from gym_replay import (
    BufferNotFoundError,
    ConcatReplayBuffer,
    EmptyBufferError,
    FieldError,
    MissingExtraError,
    ReplayBuffer,
    n_step_loader,
    push,
    timestep_loader,
    to_ray_dataset,
    window_loader,
)

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    for number in range(3):
        make(folder / "here" / "shards" / f"w-{number}", 6, seed=number).close()
    push(folder / "here", f"file://{folder}/there")
    return folder


pytestmark = pytest.mark.filterwarnings("ignore")  # Ray warns of much that is not ours


def rows_of(batches):
    """Samples as texts, in some order."""
    found = []
    for batch in batches:
        names = sorted(batch)
        columns = [np.asarray(batch[name]).tolist() for name in names]
        found += [repr(dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]
    return sorted(found)


@pytest.mark.parametrize(
    ("place", "load", "options"),
    [
        ("here", n_step_loader, {"n_steps": 3, "current_fields": ["observation", "frame"]}),
        ("there", window_loader, {"length": 4, "fields": ["observation"]}),
        ("there", timestep_loader, {"fields": ["reward", "note"]}),
    ],
)
def test_the_samples_of_a_loader(shards, place, load, options):
    source = shards / "here" if place == "here" else f"file://{shards}/there"
    asked = {"window" if name == "length" else name: value for name, value in options.items()}
    data = to_ray_dataset(source, task_bytes=4 << 10, **asked)
    found = rows_of(data.iter_batches(batch_size=50, batch_format="numpy"))
    assert found == rows_of(load(ConcatReplayBuffer(shards / "here"), 64, **options))


def test_chosen_episodes_and_tensors(shards):
    data = to_ray_dataset(
        [shards / "here" / "shards" / "w-0"],
        fields=["observation", "reward"],  # ragged rows and strings are no tensors to Ray
        episodes="episode_return > 2",
        dtype="stored",
    )
    count = ReplayBuffer.from_folder(shards / "here" / "shards" / "w-0", read_only=True).episode_lens[3:].sum()
    batches = list(data.drop_columns(["note"]).iter_torch_batches(batch_size=16))
    assert 0 < sum(len(batch["reward"]) for batch in batches) <= count
    assert batches[0]["observation"].shape[1:] == (3,)


def test_wrong_arguments(shards, tmp_path, monkeypatch):
    with pytest.raises(FieldError, match="exclude one another"):
        to_ray_dataset(shards / "here", n_steps=1, window=2)
    with pytest.raises(FieldError, match="map_batches"):
        to_ray_dataset(shards / "here", n_steps=1, normalize=["observation"])
    with pytest.raises(EmptyBufferError):
        to_ray_dataset(shards / "here", n_steps=1, episodes="episode_return > 99")
    with pytest.raises(TypeError, match="did you mean"):
        to_ray_dataset(shards / "here", n_steps=1, current_feilds=["reward"])
    with pytest.raises(BufferNotFoundError):
        to_ray_dataset(tmp_path / "nothing", n_steps=1)
    for missing in ("pyarrow", "pandas", "ray"):  # plain Ray comes without the first two
        monkeypatch.setitem(__import__("sys").modules, missing, None)
        with pytest.raises(MissingExtraError, match=rf"needs {missing}, .*pip install 'gym-replay\[ray\]'"):
            to_ray_dataset(shards / "here", n_steps=1)
