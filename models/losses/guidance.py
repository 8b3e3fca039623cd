"""Losses of the models that guide decoding.

Axes: ``P`` pairs, ``T`` tokens of the longest completion, ``S`` scored tokens; index ``i`` of T is the prefix of i + 1 tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.sums import Sums, masked, mean_of


def prefix_bradley_terry_loss(chosen_PT: Tensor, rejected_PT: Tensor, mask_PT: Tensor, pairs: int) -> tuple[Tensor, Sums]:
    """-log sigmoid(r(chosen^{1:i}) - r(rejected^{1:i})), mean over the prefix lengths i of a pair, summed over pairs and divided by
    the pairs of the whole batch.

    By hand: one pair, prefixes of 1 and 2 tokens, gaps 1 and 0: (0.313262 + 0.693147) / 2 = 0.503204.

    Args:
        chosen_PT: scores of the prefixes of the preferred completion; past its end, the score of the whole.
        rejected_PT: of the other one, likewise.
        mask_PT: True up to the length of the longer of the two, so that the last True compares the whole completions.
        pairs: pairs of the whole batch, all micro-batches together.

    Source: Rashid et al. 2024, "A Critical Look At Tokenwise Reward-Guided Text Generation": Bradley-Terry on all partial sequences.
    """
    gap_PT = torch.where(mask_PT, chosen_PT - rejected_PT, 0.0)
    loss_P = torch.where(mask_PT, -F.logsigmoid(gap_PT), 0.0).sum(-1) / mask_PT.sum(-1)
    last_P1 = mask_PT.sum(-1, keepdim=True) - 1
    chosen_P, rejected_P = chosen_PT.gather(-1, last_P1), rejected_PT.gather(-1, last_P1)
    return loss_P.sum() / pairs, {
        "train/loss": mean_of(loss_P),
        "train/accuracy": mean_of((chosen_P > rejected_P).float()),
        "reward_model/prefix_accuracy": masked((gap_PT > 0).float(), mask_PT),
        "reward_model/margin": mean_of(chosen_P - rejected_P),
        "reward_model/chosen_reward": mean_of(chosen_P),
        "reward_model/rejected_reward": mean_of(rejected_P),
    }


def prefix_value_loss(value_S: Tensor, reward_S: Tensor, tokens: int) -> tuple[Tensor, Sums]:
    """1/2 (V(s, a^{1:i}) - r(s, a))^2, summed over prefixes and divided by the tokens of the whole batch.

    Its minimum is the mean final reward of the completions that go on from the prefix.
    By hand: V = (1, 0), r = (0.5, 0.5), tokens 2: (0.125 + 0.125) / 2 = 0.125.

    Args:
        value_S: value of the prefix that ends with each token.
        reward_S: final reward of the completion that the token belongs to.
        tokens: tokens of the whole batch, all micro-batches together.

    Source: Mudgal et al. 2023, "Controlled Decoding from Language Models", CD-FUDGE; divided by the number of tokens.
    """
    loss_S = 0.5 * (value_S - reward_S) ** 2
    return loss_S.sum() / tokens, {
        "train/loss": mean_of(loss_S),
        "prefix_value/value": mean_of(value_S),
        "prefix_value/reward": mean_of(reward_S),
    }


def best_continuation_loss(score_S: Tensor, best_S: Tensor, tokens: int) -> tuple[Tensor, Sums]:
    """1/2 (r(s, a^{1:i}) - max_a r(s, a^{1:i}, a))^2, summed over prefixes and divided by the prefixes of the whole batch.

    The maximum is a target: no gradient goes through it, so that information flows from the end of a completion to its beginning.
    By hand: r = (1, 2), maxima (3, 2), 2 prefixes: (2 + 0) / 2 = 1.

    Args:
        score_S: score of each prefix that does not end a completion.
        best_S: the highest score of a prefix longer by one token.
        tokens: such prefixes of the whole batch, all micro-batches together.

    Source: Rashid et al. 2025, "Towards Cost-Effective Reward Guided Text Generation", the loss L2.
    """
    loss_S = 0.5 * (score_S - best_S.detach()) ** 2
    return loss_S.sum() / tokens, {
        "token_reward/constraint_loss": mean_of(loss_S),
        "token_reward/prefix_score": mean_of(score_S),
        "token_reward/best_continuation": mean_of(best_S),
    }
