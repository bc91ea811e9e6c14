"""Libraries that train: what accelerate, Lightning and transformers deliver of a loader is what it delivers alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from gym_replay import ReplayBuffer

accelerate = pytest.importorskip("accelerate")
lightning = pytest.importorskip("lightning.pytorch")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # these packages warn of much that is not ours
]

LENGTHS = [7, 1, 9, 4, 12, 3, 8, 5, 6, 9]
BATCH = 8
EPOCHS = 2


def fill(folder):
    with ReplayBuffer(folder, fields={"x": "float32", "reward": "float64", "terminated": "bool"}) as buffer:
        for number, length in enumerate(LENGTHS):
            buffer.store_episode(
                x=100 * number + np.arange(length), reward=np.ones(length), terminated=np.zeros(length, np.bool_)
            )
    return folder


def loader_of(folder, **options):
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    given = {"fields": ("x",), "timestep_level": True, "shuffle": True, "seed": 3} | options
    return buffer.dataloader(BATCH, **given)


def numbers(batch):
    return [int(x) for x in batch["x"].tolist()]


def alone(folder, count=EPOCHS, **options):
    """What a loader delivers alone, epoch by epoch, batch by batch."""
    loader = loader_of(folder, **options)
    return [[numbers(batch) for batch in loader] for _ in range(count)]


EVERYTHING = sorted(100 * number + t for number, length in enumerate(LENGTHS) for t in range(length))


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "buffer")


# A process that leaves its group to the end of the interpreter is now and then aborted there by threads of gloo:
# https://github.com/pytorch/pytorch/issues/190489
LEAVE = """
import torch.distributed
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def ranks(tmp_path, script, *arguments, count=2):
    """What each process of a group wrote, of a script that is run by all of them."""
    path = tmp_path / "work.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n" + script + LEAVE)
    environment = os.environ | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "NODE_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "ACCELERATE_USE_CPU": "true"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = []
    for rank in range(count):
        mine = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, str(path), str(tmp_path / f"out {rank}"), *map(str, arguments)]
        started.append(subprocess.Popen(command, env=mine, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    ends = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, ends
    return [json.loads((tmp_path / f"out {rank}").read_text()) for rank in range(count)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


# --- accelerate ---


def test_accelerate_in_one_process(folder):
    for options in (
        {},
        {"num_workers": 2, "persistent_workers": True},
        {"shuffle": "block", "block_size": 4, "pool_size": 16},
    ):
        accelerator = accelerate.Accelerator(cpu=True)
        prepared = accelerator.prepare(loader_of(folder, **options))
        assert len(prepared) == len(alone(folder, 1, **options)[0])
        assert [[numbers(batch) for batch in prepared] for _ in range(EPOCHS)] == alone(folder, **options)
        skipped = accelerate.skip_first_batches(accelerator.prepare(loader_of(folder, **options)), 3)
        assert [numbers(batch) for batch in skipped] == alone(folder, 1, **options)[0][3:]


ACCELERATE = """
import json
import accelerate
from test_trainers import BATCH, EPOCHS, loader_of, numbers
out, folder = sys.argv[1:3]
made_before = loader_of(folder, drop_last=True)  # there is no process group yet
uneven_before = loader_of(folder)
accelerator = accelerate.Accelerator(cpu=True)
assert accelerator.num_processes == 2
found = {}
prepared = accelerator.prepare(made_before)
found["prepared"] = [[numbers(batch) for batch in prepared] for _ in range(EPOCHS)]
uneven = accelerator.prepare(uneven_before)
found["uneven"] = [[numbers(batch) for batch in uneven] for _ in range(EPOCHS)]
itself = loader_of(folder, drop_last=True)
found["itself"] = [[numbers(batch) for batch in itself] for _ in range(EPOCHS)]
skipped = accelerate.skip_first_batches(accelerator.prepare(loader_of(folder, drop_last=True)), 2)
found["skipped"] = [numbers(batch) for batch in skipped]
unsure = accelerator.prepare(loader_of(folder, seed=None, rank=0, world_size=1))
try:
    next(iter(unsure))
except Exception as error:
    found["error"] = str(error)
with open(out, "w") as file:
    json.dump(found, file)
"""


def test_accelerate_in_two_processes(folder, tmp_path):
    one, other = ranks(tmp_path, ACCELERATE, folder)
    ours = [alone(folder, drop_last=True, rank=rank, world_size=2) for rank in range(2)]
    for epoch in range(EPOCHS):
        for name in ("prepared", "itself"):
            assert [one[name][epoch], other[name][epoch]] == [part[epoch] for part in ours]
        together = list(chain.from_iterable(one["prepared"][epoch] + other["prepared"][epoch]))
        assert len(set(together)) == len(together)
        # Without drop_last, accelerate fills up the last batches with the first samples, as of every loader.
        every, theirs = alone(folder)[epoch], [one["uneven"][epoch], other["uneven"][epoch]]
        assert len(theirs[0]) == len(theirs[1]) == -(-len(every) // 2)
        assert [theirs[index % 2][index // 2] for index in range(len(every) - 1)] == every[:-1]
        assert sorted(set(chain.from_iterable(theirs[0] + theirs[1]))) == EVERYTHING
    assert [one["skipped"], other["skipped"]] == [part[0][2:] for part in ours]
    assert "seed=None" in one["error"]
    assert "Iterate over the loader itself" in other["error"]


# --- Lightning ---


class Module(lightning.LightningModule):
    """A model that notes what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen, self.validated, self.predicted, self.stop_at = [], [], [], None

    def training_step(self, batch, index):
        self.seen += [[] for _ in range(self.current_epoch + 1 - len(self.seen))]
        self.seen[-1].append(numbers(batch))
        return self.layer(batch["x"].float()[:, None] / 1000).pow(2).mean()

    def validation_step(self, batch, index):
        self.validated.append(numbers(batch))

    def predict_step(self, batch, index):
        self.predicted.append(numbers(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def trainer_of(folder, **options):
    return lightning.Trainer(
        **QUIET | {"max_epochs": EPOCHS, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        | {"default_root_dir": str(folder.parent / "root")} | options
    )  # fmt: skip


class FromHooks(Module):
    """Makes its loaders in the hooks that Lightning calls."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def train_dataloader(self):
        return loader_of(self.folder)

    def predict_dataloader(self):
        return loader_of(self.folder, shuffle=False)


def test_lightning_fit_validate_and_predict(folder):
    for workers in ({}, {"num_workers": 2, "persistent_workers": True}):
        module = Module()
        trainer_of(folder).fit(module, loader_of(folder, **workers), loader_of(folder, shuffle=False))
        assert module.seen == alone(folder)
        assert module.validated == EPOCHS * alone(folder, 1, shuffle=False)[0]
        trainer_of(folder).predict(module, loader_of(folder, shuffle=False, to_named_tuple=None, **workers))
        assert module.predicted == alone(folder, 1, shuffle=False)[0]
    module.predicted = []
    trainer_of(folder).predict(module, loader_of(folder))
    assert module.predicted == alone(folder, 1)[0]


def test_lightning_makes_loaders_in_its_hooks(folder):
    module = FromHooks(folder)
    trainer_of(folder).fit(module)
    trainer_of(folder).predict(module)
    assert module.seen == alone(folder)
    assert module.predicted == alone(folder, 1, shuffle=False)[0]


@pytest.mark.parametrize(
    "make", [lambda folder: (Module(), loader_of(folder)), lambda folder: (FromHooks(folder), None)]
)
def test_lightning_overfits_one_batch(folder, make):
    module, loader = make(folder)
    trainer_of(folder, overfit_batches=1, max_epochs=4).fit(module, loader)
    assert module.seen == [alone(folder, 1)[0][:1]] * 4


class Interrupted(Module):
    def on_train_batch_end(self, outputs, batch, index):
        if self.current_epoch == 1 and index == 2:
            self.trainer.save_checkpoint(self.stop_at)
            raise KeyboardInterrupt


def test_lightning_resumes_within_an_epoch(folder, tmp_path):
    module = Interrupted()
    module.stop_at = tmp_path / "last.ckpt"
    with pytest.raises(BaseException):  # noqa: B017, PT011 - Lightning leaves by SystemExit or KeyboardInterrupt
        trainer_of(folder).fit(module, loader_of(folder))
    assert module.seen == [alone(folder)[0], alone(folder)[1][:3]]
    resumed = Module()
    trainer_of(folder).fit(resumed, loader_of(folder), ckpt_path=module.stop_at)
    assert resumed.seen == [[], alone(folder)[1][3:]]


LIGHTNING = """
import json
from pathlib import Path
import lightning.pytorch as lightning
from test_trainers import Module, loader_of, trainer_of
out, folder = sys.argv[1], Path(sys.argv[2])
found = {}
for name, options in (("injected", {}), ("ours", {"use_distributed_sampler": False})):
    module = Module()
    trainer = trainer_of(folder, devices=2, strategy="ddp", **options)
    trainer.fit(module, loader_of(folder, drop_last=True, seed=None if name == "injected" else 3))
    found[name] = module.seen
    found[name + " seed"] = trainer.train_dataloader.seed
trainer.predict(module, loader_of(folder, shuffle=False, drop_last=True))
found["predicted"] = module.predicted
with open(out, "w") as file:
    json.dump(found, file)
"""


def test_lightning_in_two_processes(folder, tmp_path):
    one, other = ranks(tmp_path, LIGHTNING, folder)
    seed = one["injected seed"]
    assert seed == other["injected seed"]  # agreed on when the first iteration began
    for name, options in (("injected", {"seed": seed}), ("ours", {})):
        for rank, of in enumerate((one, other)):
            assert of[name] == alone(folder, drop_last=True, rank=rank, world_size=2, **options)
        for epoch in range(EPOCHS):
            together = list(chain.from_iterable(one[name][epoch] + other[name][epoch]))
            assert len(set(together)) == len(together) == 64
    shared = [alone(folder, 1, shuffle=False, drop_last=True, rank=rank, world_size=2)[0] for rank in range(2)]
    assert [one["predicted"], other["predicted"]] == shared


# --- transformers ---


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append([int(value) for value in x.tolist()])
        return {"loss": self.layer(x.float()[:, None] / 1000).pow(2).mean()}


class Trainer(transformers.Trainer):
    """Trains from a loader, as it is, or as the Trainer's accelerator prepares it."""

    def __init__(self, loader, prepare, *arguments, **options):
        super().__init__(*arguments, **options)
        self.loader, self.prepare = loader, prepare

    def get_train_dataloader(self):
        return self.accelerator.prepare(self.loader) if self.prepare else self.loader


def train(folder, root, prepare, *, resume=None, **options):
    model = Model()
    arguments = transformers.TrainingArguments(
        output_dir=str(root), num_train_epochs=EPOCHS, use_cpu=True, report_to=[], disable_tqdm=True,
        **{"save_strategy": "no", "logging_strategy": "no"} | options,
    )  # fmt: skip
    loader = loader_of(folder, drop_last=True)
    trainer = Trainer(loader, prepare, model=model, args=arguments, train_dataset=loader.dataset)
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.parametrize("prepare", [False, True])
def test_transformers_trains_and_resumes(folder, tmp_path, prepare):
    expected = list(chain.from_iterable(alone(folder, drop_last=True)))
    saves = {"save_strategy": "steps", "save_steps": 11}
    assert train(folder, tmp_path / "root", prepare, **saves) == expected
    assert train(folder, tmp_path / "root", prepare, resume=str(tmp_path / "root" / "checkpoint-11")) == expected[11:]


TRANSFORMERS = """
import json
from pathlib import Path
from test_trainers import train
out, folder = sys.argv[1], Path(sys.argv[2])
found = {str(prepare): train(folder, Path(out + " root"), prepare) for prepare in (False, True)}
with open(out, "w") as file:
    json.dump(found, file)
"""


def test_transformers_in_two_processes(folder, tmp_path):
    found = ranks(tmp_path, TRANSFORMERS, folder)
    for prepare in ("False", "True"):
        for rank, of in enumerate(found):
            mine = alone(folder, drop_last=True, rank=rank, world_size=2)
            assert of[prepare] == list(chain.from_iterable(mine))
