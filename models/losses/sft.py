"""Supervised fine-tuning: maximise the likelihood of demonstrated tokens.

Axes: ``S`` scored tokens of a micro-batch, ``C`` completions.
"""

from typing import Literal

from torch import Tensor

from models.losses.sums import Sums, mean_of

Normaliser = Literal["token_mean", "sequence_mean", "sum"]


def sft_loss(
    logp_S: Tensor, completion_S: Tensor, length_C: Tensor, normaliser: Normaliser, tokens: int, sequences: int
) -> tuple[Tensor, Sums]:
    """Negative log-likelihood under one of three normalisers, over the whole accumulated batch.

    token_mean:    -sum_S logp / tokens          sequence_mean: -sum_C (sum_t logp / len_c) / sequences          sum: -sum_S logp

    By hand: two sequences with token log-probs (-1, -3) and (-2,): token_mean = 6/3 = 2, sequence_mean = (2 + 2)/2 = 2, sum = 6.

    Args:
        logp_S: log-probability of each scored token, nats.
        completion_S: the completion that each token belongs to.
        length_C: scored tokens of each completion.
        normaliser: which of the three.
        tokens: scored tokens of the *whole* batch, all micro-batches together.
        sequences: sequences of the whole batch.

    Source: behaviour cloning; the mean per sequence is the lecture form, the mean over tokens the default here.
    """
    if normaliser == "token_mean":
        loss = -logp_S.sum() / tokens
    elif normaliser == "sequence_mean":
        loss = -(logp_S / length_C[completion_S]).sum() / sequences
    else:
        loss = -logp_S.sum()
    return loss, {"train/loss": mean_of(-logp_S)}
