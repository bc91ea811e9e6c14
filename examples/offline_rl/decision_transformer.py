"""The Decision Transformer: the next action after a stretch of returns-to-go, observations and actions.

L. Chen, K. Lu et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", NeurIPS 2021
(arXiv:2106.01345). Smaller than the paper's: it has a context of 20 and three layers of width 128, and needs hours of a
processor. No value is learned: the policy is asked for a return, and does what was done where that came out.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from examples.offline_rl.networks import Array, forever
from gym_replay import ConcatReplayBuffer, ReplayBuffer, crop_loader, statistics

CONTEXT = 10
WARM_UP = 500


class Block(nn.Module):
    """A layer of the transformer: attention to what came before, then a perceptron, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Tokens ``(batch, time, width)``; ``visible``, bool ``(batch, 1, time, time)``: who sees whom."""
        parts = self.queries_keys_values(self.before_attention(tokens)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        tokens = tokens + self.attended(seen.transpose(1, 2).flatten(2))
        out: Tensor = tokens + self.perceptron(self.before_perceptron(tokens))
        return out


class DecisionTransformer(nn.Module):
    """Actions ``(batch, time, actions)`` for a batch as ``batch_format="decision_transformer"`` has it.

    Args:
        observation: the statistics of the observations.
        space: of the actions.
        longest: steps of the longest episode.
        scale: what returns are divided by.
        width, layers, heads: sizes of the transformer.
    """

    mean: Tensor
    std: Tensor
    limit: Tensor

    def __init__(
        self,
        observation: Any,
        space: gym.spaces.Box,
        longest: int,
        scale: float,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.of_return, self.of_state = nn.Linear(1, width), nn.Linear(len(observation.mean), width)
        self.of_action, self.of_time = nn.Linear(space.shape[0], width), nn.Embedding(longest, width)
        self.before = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, space.shape[0]), nn.Tanh())
        for name, values in (("mean", observation.mean), ("std", observation.std), ("limit", space.high)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))

    def forward(
        self, states: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """The action for each state; ``attention_mask`` ``(batch, time)`` is 0 where there is no transition."""
        when = self.of_time(timesteps)
        kinds = (
            self.of_return(returns_to_go / self.scale),
            self.of_state(states),
            self.of_action(actions / self.limit),
        )
        tokens = self.before(torch.stack([kind + when for kind in kinds], dim=2).flatten(1, 2))
        count = tokens.shape[1]
        there = attention_mask.bool().repeat_interleave(len(kinds), dim=1)[:, None, None]
        itself = torch.eye(count, dtype=torch.bool)  # else what is padding would see nothing, and that is NaN
        visible = there & torch.ones(count, count, dtype=torch.bool).tril() | itself
        for block in self.blocks:
            tokens = block(tokens, visible)
        found: Tensor = self.limit * self.head(tokens[:, 1 :: len(kinds)])
        return found


class Player:
    """The policy that asks for a return, in several environments at once.

    It has to know the rewards, which a policy is not told: it plays environments within :class:`LastReward`.

    Args:
        model: what it asks.
        target: the return that it asks for.
        context: how many steps the model sees.
    """

    def __init__(self, model: DecisionTransformer, target: float, context: int = CONTEXT) -> None:
        self.model, self.target, self.context = model.eval(), target, context

    def reset(self, mask: Array, seeds: Array) -> None:
        """Episodes begin in the environments of a mask."""
        if mask.all():
            sizes = {"states": len(self.model.mean), "actions": len(self.model.limit), "returns_to_go": 1}
            self.seen = {name: torch.zeros(len(mask), self.context, size) for name, size in sizes.items()}
            self.steps = torch.zeros(len(mask), dtype=torch.int64)
            self.begins = np.ones(len(mask), np.bool_)
        self.begins = self.begins | mask

    @torch.inference_mode()
    def __call__(self, observations: Array) -> Array:
        """Actions for observations that end with the last reward."""
        seen, begins = self.seen, torch.from_numpy(self.begins)
        rows = torch.as_tensor(observations, dtype=torch.float32)
        left = torch.where(begins, self.target, seen["returns_to_go"][:, -1, 0] - rows[:, -1])
        self.steps = torch.where(begins, 0, self.steps + 1)
        self.begins = np.zeros_like(self.begins)
        new = {
            "states": (rows[:, :-1] - self.model.mean) / self.model.std,
            "actions": torch.zeros_like(seen["actions"][:, -1]),
            "returns_to_go": left[:, None],
        }
        for name, value in new.items():
            seen[name] = torch.cat((seen[name][:, 1:], value[:, None]), dim=1)
        times = self.steps[:, None] - torch.arange(self.context - 1, -1, -1)
        chosen = self.model(**seen, timesteps=times.clamp(min=0), attention_mask=times >= 0)[:, -1]
        seen["actions"][:, -1] = chosen
        found: Array = chosen.numpy()
        return found


class LastReward(gym.Wrapper[Array, Array, Array, Array]):
    """An environment whose observations end with the last reward; 0 after a reset."""

    def __init__(self, env: gym.Env[Array, Array]) -> None:
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, gym.spaces.Box)
        low, high = (np.append(bound, side) for bound, side in ((inner.low, -np.inf), (inner.high, np.inf)))
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float64)

    def reset(self, **options: Any) -> tuple[Array, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return np.append(observation, 0.0).astype(np.float64), info

    def step(self, action: Array) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        observation, reward, *rest = self.env.step(action)
        return np.append(observation, reward).astype(np.float64), reward, *rest


def train(
    buffer: ReplayBuffer | ConcatReplayBuffer,
    steps: int,
    seed: int,
    *,
    batch_size: int = 64,
    context: int = CONTEXT,
    **sizes: int,
) -> Player:
    """Learn to say the recorded actions, and ask for the best return of the data.

    The buffer needs a field ``return_to_go``: ``buffer.add_field("return_to_go", "float64", returns_to_go(buffer))``.
    """
    torch.manual_seed(seed)
    found = statistics(buffer, ["observation"], progress=False)
    returns = np.asarray(buffer.meta["episode_return"])
    scale = float(np.abs(returns).max())
    longest = int(max(buffer.episode_lens))
    model = DecisionTransformer(found["observation"], buffer.action_space, longest, scale, **sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    loader = crop_loader(
        buffer,
        batch_size,
        context,
        batch_format="decision_transformer",
        normalize=found,
        shuffle=True,
        drop_last=True,
        seed=seed,
    )
    for batch in islice(forever(loader), steps):
        del batch["rewards"]
        there = batch["attention_mask"].bool()
        error = (model(**batch) - batch["actions"])[there] / model.limit
        optimizer.zero_grad(set_to_none=True)
        loss = error.square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        schedule.step()
    return Player(model, float(returns.max()), context)
