"""Segment-level rejection sampling: the policy draws a segment, a reward accepts it or has it drawn again (cascade reward sampling).

A segment ends before a token of which the policy is uncertain, at the end of turn, or at the longest completion. All rows go on token by
token together, each in a segment of its own; the caches of policy and reward model are rewound where a segment is rejected.

Axes: ``R`` rows (prompt x sample), ``V`` vocabulary, ``E`` hidden width.

Source: Li et al. 2024, "Cascade Reward Sampling for Efficient Decoding-Time Alignment" (CARDS).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from models.configs.guidance import GuidanceConfig
from models.configs.sampling import SamplingConfig
from models.generation import Completion, decode, prefill, sample_tokens
from models.heads import ScalarModel
from models.logprobs import head_weight
from models.seeds import derive_seed


@dataclass
class Tally:
    """Segments that were drawn, accepted by chance, and taken because the tries were used up."""

    drawn: int = 0
    accepted: int = 0
    forced: int = 0


@dataclass
class _Row:
    """One completion: what is accepted, the segment being drawn, and the best of those rejected at this place."""

    completion: Completion
    prompt_reward: float
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    tries: int = 0
    best: list[int] = field(default_factory=list)
    best_reward: float = -math.inf
    replay: list[int] = field(default_factory=list)  # tokens that are put instead of drawn: the best rejected segment


def acceptance(reward: float, goal: float, width: float) -> float:
    """min(1, exp((r - r_goal) / width)).

    By hand: 0.7 below the goal at width 0.7: e^-1 = 0.367879. At the goal or above: 1.
    """
    return math.exp(min(0.0, (reward - goal) / width))


def goal_at(config: GuidanceConfig, prompt_reward: float, tokens: int, max_tokens: int) -> float:
    """The reward that a prefix of ``tokens`` tokens should have: rises linearly to ``goal`` at the longest completion.

    r_0 + (goal - r_0) tokens / max_tokens with r_0 = (1 - goal_start) prompt_reward + goal_start goal. By hand: goal 1, prompt -1,
    goal_start 0.5: r_0 = 0, and 0.5 half way. With goal_start 1 it is the goal throughout.
    """
    start = (1 - config.goal_start) * prompt_reward + config.goal_start * config.goal
    return start + (config.goal - start) * tokens / max_tokens


@torch.no_grad()
def generate_by_segments(
    policy: PreTrainedModel,
    reward: ScalarModel,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    config: GuidanceConfig,
    *,
    samples: int,
    eos_ids: Sequence[int],
    seed: int,
    on_step: Callable[[], None] | None = None,
) -> tuple[list[list[Completion]], Tally]:
    """``samples`` completions of every prompt, in the order of the prompts, and how many segments it took.

    Arguments are those of ``models.generation.generate``; ``logps`` are the policy's, of what was accepted.
    """
    results = [[Completion() for _ in range(samples)] for _ in prompts]
    tally = Tally()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    wave = max(1, sampling.max_rows // samples)
    for number, begin in enumerate(range(0, len(order), wave)):
        members = order[begin : begin + wave]
        noise = torch.Generator(device=policy.device).manual_seed(derive_seed(seed, "segments", number))
        completions = [completion for i in members for completion in results[i]]
        drawn = _Wave(policy, reward, [prompts[i] for i in members], completions, sampling, config, set(eos_ids), noise, tally)
        while drawn.rows:
            if on_step is not None:
                on_step()
            drawn.step()
    return results, tally


class _Wave:
    """Rows that are generated together."""

    def __init__(self, policy, reward, prompts, completions, sampling, config, eos_ids, noise, tally: Tally):
        self.policy, self.reward, self.sampling, self.config = policy, reward, sampling, config
        self.eos_ids, self.noise, self.tally = eos_ids, noise, tally
        samples = len(completions) // len(prompts)
        self.head_VE = head_weight(policy)
        self.layout, hidden_RE = prefill(policy, prompts, samples, sampling.max_tokens)
        self.logits_RV = hidden_RE @ self.head_VE.T
        self.judge, judged_RE = prefill(reward.backbone, prompts, samples, sampling.max_tokens)
        self.reward_R = reward.normalised(reward.read(judged_RE))
        self.rows = [_Row(c, r) for c, r in zip(completions, self.reward_R.tolist(), strict=True)]
        self.start_RV, self.start_own_R = self.logits_RV, self.layout.own_R  # where each row's segment begins

    def step(self) -> None:
        """Settle the segments that have ended, then one more token for every row."""
        self._settle()
        if not self.rows:
            return
        token_R, logp_R = self._draw(self.logits_RV)
        for row, token, logp in zip(self.rows, token_R.tolist(), logp_R.tolist(), strict=True):
            row.tokens.append(token)
            row.logps.append(logp)
        self.logits_RV = decode(self.policy, token_R, self.layout) @ self.head_VE.T
        self.reward_R = self.reward.normalised(self.reward.read(decode(self.reward.backbone, token_R, self.judge)))

    def _draw(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        token_R, logp_R = sample_tokens(logits_RV, self.sampling, self.noise)
        given = {i: row.replay[len(row.tokens)] for i, row in enumerate(self.rows) if row.replay}
        if not given:
            return token_R, logp_R
        at, put = torch.tensor(list(given), device=token_R.device), torch.tensor(list(given.values()), device=token_R.device)
        logp_RV = (logits_RV.float() / (self.sampling.temperature or 1.0)).log_softmax(-1)
        token_R[at] = put
        logp_R[at] = logp_RV[at, put]
        return token_R, logp_R

    def _settle(self) -> None:
        entropy_R = self._entropies().tolist()
        chance_R = torch.rand(len(self.rows), generator=self.noise, device=self.logits_RV.device, dtype=torch.float64).tolist()
        rewards = self.reward_R.tolist()
        accepted, rejected, done = [], [], []
        for i, row in enumerate(self.rows):
            if not self._has_ended(row, entropy_R[i]):
                continue
            if self._accepts(row, rewards[i], chance_R[i]):
                accepted.append(i)
                if self._extend(row):
                    done.append(i)
            else:
                rejected.append(i)
        self._keep(accepted)
        self._rewind(rejected)
        if done:
            self._leave(done)

    def _entropies(self) -> Tensor:
        """Of the next token, nats, at the sampling temperature."""
        logp_RV = (self.logits_RV.float() / (self.sampling.temperature or 1.0)).log_softmax(-1)
        return -(logp_RV.exp() * logp_RV).sum(-1)

    def _has_ended(self, row: _Row, entropy: float) -> bool:
        if not row.tokens:
            return False
        if row.replay:
            return len(row.tokens) == len(row.replay)
        full = len(row.completion.tokens) + len(row.tokens) == self.sampling.max_tokens
        return full or row.tokens[-1] in self.eos_ids or entropy > self.config.entropy_nats

    def _accepts(self, row: _Row, reward: float, chance: float) -> bool:
        if row.replay:
            self.tally.forced += 1
            return True
        self.tally.drawn += 1
        tokens = len(row.completion.tokens) + len(row.tokens)
        goal = goal_at(self.config, row.prompt_reward, tokens, self.sampling.max_tokens)
        if chance < acceptance(reward, goal, self.config.goal_width):
            self.tally.accepted += 1
            return True
        if reward > row.best_reward or not row.best:
            row.best, row.best_reward = row.tokens, reward
        row.tries += 1
        return False

    def _extend(self, row: _Row) -> bool:
        """Add the segment to the completion; True when that is the end of it."""
        row.completion.tokens += row.tokens
        row.completion.logps += row.logps
        row.completion.finished = row.tokens[-1] in self.eos_ids
        row.tokens, row.logps, row.tries = [], [], 0
        row.best, row.best_reward, row.replay = [], -math.inf, []
        return row.completion.finished or len(row.completion.tokens) == self.sampling.max_tokens

    def _keep(self, accepted: list[int]) -> None:
        at = torch.tensor(accepted, dtype=torch.long, device=self.logits_RV.device)
        self.start_RV = self.start_RV.index_copy(0, at, self.logits_RV[at])
        self.start_own_R = self.start_own_R.index_copy(0, at, self.layout.own_R[at])

    def _rewind(self, rejected: list[int]) -> None:
        for i in rejected:
            row = self.rows[i]
            row.tokens, row.logps = [], []
            row.replay = row.best if row.tries == self.config.max_tries else []
        at = torch.tensor(rejected, dtype=torch.long, device=self.logits_RV.device)
        self.logits_RV = self.logits_RV.index_copy(0, at, self.start_RV[at])
        own_R = self.layout.own_R.index_copy(0, at, self.start_own_R[at])
        self.layout.rewind(own_R)
        self.judge.rewind(own_R)

    def _leave(self, done: list[int]) -> None:
        gone = set(done)
        alive = [i for i in range(len(self.rows)) if i not in gone]
        self.rows = [self.rows[i] for i in alive]
        keep = torch.tensor(alive, dtype=torch.long, device=self.logits_RV.device)
        if alive:
            self.layout.select(keep)
            self.judge.select(keep)
        self.logits_RV, self.reward_R = self.logits_RV[keep], self.reward_R[keep]
        self.start_RV, self.start_own_R = self.start_RV[keep], self.start_own_R[keep]
