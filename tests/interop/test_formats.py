"""Batches under other names: each format against what its code says, and against that code where it is installed."""

import numpy as np
import pytest
import torch
from interop_helpers import by_hand, pendulum, sights

from gym_replay import (
    DecisionTransformerFormat,
    Field,
    FieldError,
    GoalSampler,
    LeRobotFormat,
    ReplayBuffer,
    crop_loader,
    n_step_loader,
    returns_to_go,
    to_d4rl,
    to_ogbench,
    window_loader,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def hands(tmp_path):
    with by_hand(tmp_path / "hands", [3, 5, 1], [True, True, True]) as buffer:
        yield buffer


@pytest.fixture
def robot(tmp_path):
    """Images and states, and the task of each episode."""
    with sights(tmp_path / "robot", 4, meta_fields={"task": "str"}):
        pass
    with ReplayBuffer.from_folder(tmp_path / "robot") as buffer:
        buffer.update(task=["pick", "place", "pick", "push"])
        yield buffer


def whole(loader):
    """All batches of an epoch as one."""
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_lerobot_rows_and_padding_are_those_of_its_own_rule(robot):
    """``max(start, min(end - 1, index + delta))``, and ``index + delta`` outside of the episode is padding."""
    deltas = [-2, 0, 1, 4]
    loader = window_loader(robot, 7, offsets={"action": deltas}, batch_format=LeRobotFormat(fps=10))
    batches = list(loader)
    lengths = robot.episode_lens
    starts = np.cumsum(lengths) - lengths
    actions = np.concatenate([episode["action"] for episode in robot])
    tasks = {"pick": 0, "place": 1, "push": 2}
    index = 0
    for batch in batches:
        for k in range(len(batch["index"])):
            episode = int(np.searchsorted(starts, index, side="right") - 1)
            start, end = int(starts[episode]), int(starts[episode] + lengths[episode])
            rows = [max(start, min(end - 1, index + delta)) for delta in deltas]
            pad = [index + delta < start or index + delta >= end for delta in deltas]
            assert batch["index"][k] == index
            assert batch["episode_index"][k] == episode
            assert batch["frame_index"][k] == index - start
            assert batch["timestamp"][k] == np.float32((index - start) / 10)
            assert batch["action_is_pad"][k].tolist() == pad
            np.testing.assert_array_equal(batch["action"][k], actions[rows])
            assert batch["task"][k] == robot.episode(episode).meta["task"]
            assert batch["task_index"][k] == tasks[batch["task"][k]]
            image = robot.episode(episode)["observation.camera.top"][index - start]
            np.testing.assert_array_equal(
                batch["observation.images.camera.top"][k],
                np.moveaxis(image, -1, 0).astype(np.float32) / np.float32(255),
            )
            np.testing.assert_array_equal(
                batch["observation.state"][k], robot.episode(episode)["observation.state"][index - start]
            )
            ended = index == end - 1
            assert bool(batch["next.done"][k]) == ended
            index += 1
    assert index == lengths.sum()
    dtypes = {"index": torch.int64, "timestamp": torch.float32, "task_index": torch.int64, "action_is_pad": torch.bool}
    assert {name: batches[0][name].dtype for name in dtypes} == dtypes
    assert not {"_indices", "terminated", "reward"} & set(batches[0])


def test_lerobot_in_workers_and_alone(robot):
    options = {"offsets": {"action": range(3)}, "batch_format": "lerobot"}
    here, there = (list(window_loader(robot, 5, num_workers=n, **options)) for n in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == other[name] if isinstance(value, list) else torch.equal(value, other[name])
    sample = robot.dataset(timestep_level=True, batch_format="lerobot")[3]
    assert sample["observation.images.camera.top"].shape == (3, 32, 40)
    assert sample["task"] == "pick"
    assert sample["frame_index"] == 3
    assert sample["timestamp"] == 3.0


def test_a_format_follows_a_buffer_that_grows(tmp_path):
    with by_hand(tmp_path / "a", [3], [True], meta_fields={"task": "str"}) as buffer:
        loader = window_loader(buffer, 50, offsets={"action": (0,)}, batch_format="lerobot", refresh="epoch")
        assert next(iter(loader))["task_index"].tolist() == [0, 0, 0]
        values = {name: buffer.episode(0)[name] for name in buffer.fieldnames}
        buffer.store_episode(**values, task="later")
        batch = next(iter(loader))
        assert batch["task_index"].tolist() == [0, 0, 0, 1, 1, 1]
        assert batch["index"].tolist() == list(range(6))


def test_lerobot_names(hands, robot):
    batch = next(iter(window_loader(hands, 2, length=2, batch_format="lerobot")))
    assert set(batch) >= {"observation.state", "observation.state_is_pad", "next.reward", "next.reward_is_pad"}
    assert batch["task_index"].tolist() == [0, 0]
    keys = LeRobotFormat(keys={"observation.state": "observation.environment_state"})
    batch = next(iter(window_loader(robot, 2, offsets={"observation.state": (-1, 0)}, batch_format=keys)))
    assert batch["observation.environment_state_is_pad"].tolist() == [[True, False], [False, False]]
    with pytest.raises(FieldError, match="fps"):
        LeRobotFormat(fps=0)


def test_lerobot_act_takes_a_step(robot):
    """The package wants torchvision with its compiled operators; for the policy itself their names are enough."""
    pytest.importorskip("lerobot")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    policy = ACTPolicy(
        ACTConfig(
            input_features={
                "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
                "observation.images.camera.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 40)),
            },
            output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
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
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    loader = window_loader(robot, 8, offsets={"action": range(8)}, batch_format="lerobot", shuffle=True, seed=0)
    for batch in loader:
        loss, parts = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(loss.item())
        assert np.isfinite(parts["l1_loss"])


def padded(values, width, fill):
    return np.concatenate([np.full((width - len(values), *values.shape[1:]), fill, values.dtype), values])


def test_decision_transformer_is_padded_as_its_authors_do_it(hands):
    hands.add_field("return_to_go", "float64", returns_to_go(hands))
    batch = whole(crop_loader(hands, 4, 4, batch_format="decision_transformer"))
    anchors = [(episode, t) for episode in hands for t in range(len(episode))]
    assert list(batch) == ["states", "actions", "rewards", "returns_to_go", "timesteps", "attention_mask"]
    for k, (episode, t) in enumerate(anchors):
        end = min(t + 4, len(episode))
        rewards = episode["reward"].astype(np.float32)
        left = np.array([episode["reward"][s:].sum() for s in range(t, end)], np.float32)
        np.testing.assert_array_equal(
            batch["states"][k], padded(episode["observation"][t:end].astype(np.float32), 4, 0)
        )
        np.testing.assert_array_equal(batch["actions"][k], padded(episode["action"][t:end], 4, 0))
        np.testing.assert_array_equal(batch["rewards"][k, :, 0], padded(rewards[t:end], 4, 0))
        np.testing.assert_array_equal(batch["returns_to_go"][k, :, 0], padded(left, 4, 0))
        np.testing.assert_array_equal(batch["timesteps"][k], padded(np.arange(t, end), 4, 0))
        np.testing.assert_array_equal(batch["attention_mask"][k], padded(np.ones(end - t, int), 4, 0))
    assert batch["timesteps"].dtype == batch["attention_mask"].dtype == torch.int64


def test_decision_transformer_on_the_right_and_its_actions(tmp_path):
    with pendulum(tmp_path / "a", 1) as buffer, pytest.raises(FieldError, match=r"add_field\('return_to_go'"):
        crop_loader(buffer, 4, 4, batch_format="decision_transformer")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        buffer.add_field("return_to_go", "float64", returns_to_go(buffer))
        last = whole(crop_loader(buffer, 40, 4, batch_format="decision_transformer"))
        assert (last["actions"][-1, :3] == -10).all()
        other = DecisionTransformerFormat(action_pad=0.0)
        right = whole(crop_loader(buffer, 40, 4, batch_format=other, pad="right"))
        assert right["attention_mask"][-1].tolist() == [1, 0, 0, 0]
        assert right["timesteps"][-1].tolist() == [39, 0, 0, 0]
        assert (right["actions"][-1, 1:] == 0).all()
        with pytest.raises(FieldError, match="burn_in"):
            crop_loader(buffer, 4, 4, burn_in=2, batch_format="decision_transformer")


def test_decision_transformer_of_transformers_takes_a_step(tmp_path):
    transformers = pytest.importorskip("transformers")
    with pendulum(tmp_path / "a", 1):
        pass
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        buffer.add_field("return_to_go", "float64", returns_to_go(buffer))
        config = transformers.DecisionTransformerConfig(state_dim=3, act_dim=1, hidden_size=16, n_layer=1, n_head=1)
        model = transformers.DecisionTransformerModel(config)
        batch = next(iter(crop_loader(buffer, 8, 5, batch_format="decision_transformer", shuffle=True, seed=0)))
        predicted = model(**batch).action_preds
        mask = batch["attention_mask"].bool()
        loss = ((predicted - batch["actions"])[mask] ** 2).mean()
        loss.backward()
        assert torch.isfinite(loss)


@pytest.mark.parametrize(("name", "export"), [("d4rl", to_d4rl), ("ogbench", to_ogbench)])
def test_flat_formats_are_the_exported_arrays(hands, name, export):
    batch, arrays = whole(n_step_loader(hands, 4, batch_format=name)), export(hands)
    assert batch.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(batch[key], array)
        assert batch[key].numpy().dtype == array.dtype


def test_ogbench_goals(hands):
    loader = n_step_loader(hands, 9, batch_format="ogbench", goal_sampler=GoalSampler(), seed=3)
    plain = next(iter(n_step_loader(hands, 9, goal_sampler=GoalSampler(), seed=3)))
    batch = next(iter(loader))
    assert torch.equal(batch["value_goals"], plain["value_goal_observation"])
    assert torch.equal(batch["actor_goals"], plain["policy_goal_observation"])
    assert torch.equal(batch["rewards"], plain["goal_reward"].float())
    assert torch.equal(batch["masks"], plain["goal_mask"].float())
    with pytest.raises(FieldError, match="n_steps=1"):
        n_step_loader(hands, 9, 3, batch_format="ogbench")


def test_robomimic_windows(hands, robot):
    """Frames before and steps after repeat the nearest one, and the mask is 1 where there is one."""
    offsets = dict.fromkeys(("observation", "action", "reward", "terminated", "truncated"), range(-1, 3))
    batch = next(iter(window_loader(hands, 9, offsets=offsets, batch_format="robomimic")))
    assert batch["pad_mask"].shape == (9, 4, 1)
    assert batch["pad_mask"].dtype == torch.bool
    valid = [[False, True, True, True], [True, True, True, False], [True, True, False, False]]
    assert batch["pad_mask"][:3, :, 0].tolist() == valid
    assert batch["actions"][:3].tolist() == [[0, 0, 1, 2], [0, 1, 2, 2], [1, 2, 2, 2]]
    assert batch["dones"][:3].tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    assert set(batch) == {"obs", "actions", "rewards", "dones", "pad_mask"}
    states = dict.fromkeys(("observation.state", "observation.camera.top", "action"), range(2))
    batch = next(iter(window_loader(robot, 4, offsets=states, batch_format="robomimic", fields=())))
    assert batch["obs"]["camera.top"].shape == (4, 2, 32, 40, 3)
    assert batch["obs"]["camera.top"].dtype == torch.uint8
    assert robot.dataset(offsets=states, batch_format="robomimic")[0]["obs"]["state"].shape == (2, 4)


def test_diffusion_policy_windows_are_those_of_its_sampler(hands):
    """Every window that its sampler has (``create_indices``) is one of ours, with the same values."""
    horizon, n_obs, n_act = 4, 2, 3
    offsets = {"observation": range(1 - n_obs, 1), "action": range(1 - n_obs, horizon - n_obs + 1)}
    loader = window_loader(hands, 9, offsets=offsets, fields=(), batch_format="diffusion_policy")
    batch = next(iter(loader))
    assert set(batch) == {"obs", "action"}
    anchors = [(number, t) for number, episode in enumerate(hands) for t in range(len(episode))]
    found = {anchor: k for k, anchor in enumerate(anchors)}
    for number, episode in enumerate(hands):
        length = len(episode)
        for start in range(-(n_obs - 1), length - horizon + n_act - 1 + 1):
            rows = np.clip(np.arange(start, start + horizon), 0, length - 1)
            k = found[number, start + n_obs - 1]
            np.testing.assert_array_equal(batch["action"][k], episode["action"][rows])
            np.testing.assert_array_equal(batch["obs"][k], episode["observation"][rows[:n_obs]].astype(np.float32))


def test_diffusion_policy_images(robot):
    offsets = {"observation.camera.top": (0,), "observation.state": (0,), "action": range(2)}
    batch = next(iter(window_loader(robot, 4, offsets=offsets, batch_format="diffusion_policy")))
    assert batch["obs"]["camera.top"].shape == (4, 1, 3, 32, 40)
    assert batch["obs"]["camera.top"].max() <= 1
    with pytest.raises(FieldError, match="no mask"):
        window_loader(robot, 4, offsets=offsets, boundary="zero", batch_format="diffusion_policy")


def _doubled(batch):
    return batch | {"reward": 2 * batch["reward"]}


def test_a_transform_comes_before_the_format(hands):
    batch = next(iter(n_step_loader(hands, 3, batch_format="d4rl", transform=_doubled)))
    assert batch["rewards"].tolist() == [2.0, 2.5, 3.0]


def test_what_does_not_go_together_is_refused(hands):
    with pytest.raises(FieldError, match="goes with window and timestep loading, not with crop"):
        crop_loader(hands, 2, 2, batch_format="lerobot")
    with pytest.raises(FieldError, match="expected one of"):
        n_step_loader(hands, 2, batch_format="nothing")
    for other in ({"nested": True}, {"fieldname_map": {"action": "a"}}, {"to_named_tuple": ("action",)}):
        with pytest.raises(FieldError, match="exclude one another"):
            n_step_loader(hands, 2, batch_format="d4rl", **other)


def test_one_number_a_step_is_a_single_number_in_every_format(tmp_path):
    kinds = {"reward": "float64", "return_to_go": "float64", "terminated": "bool", "truncated": "bool"}
    found = []
    for name, shape in (("scalars", ()), ("columns", (1,))):
        fields = {"observation": Field("float32", (2,), state=True), "action": "int"}
        fields |= {kind: (dtype, shape) for kind, dtype in kinds.items()}
        with ReplayBuffer(tmp_path / name, fields=fields) as buffer:
            values = {kind: np.arange(4).reshape(4, *shape) % 2 for kind in kinds}
            buffer.store_episode(observation=np.ones((5, 2)), action=np.arange(4), **values)
            offsets = {f: range(2) for f in ("action", "reward", "terminated", "truncated")}
            found.append(
                {
                    **{k: next(iter(n_step_loader(buffer, 3, batch_format=k))) for k in ("d4rl", "ogbench")},
                    "decision_transformer": next(iter(crop_loader(buffer, 3, 2, batch_format="decision_transformer"))),
                    **{
                        k: next(iter(window_loader(buffer, 3, offsets=offsets, batch_format=k)))
                        for k in ("lerobot", "robomimic", "diffusion_policy")
                    },
                }
            )
    scalars, columns = found
    for kind, batch in scalars.items():
        for key, value in batch.items():
            if key == "return_to_go":  # a field of one's own, which the format hands on
                continue
            assert value.keys() if isinstance(value, dict) else value.equal(columns[kind][key]), (kind, key)
    assert scalars["d4rl"]["rewards"].shape == (3,)
