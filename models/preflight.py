"""Checks before the first step: what would otherwise fail, or train the wrong thing, an hour later."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from data.packing import Group, pack
from models.loading import load_policy
from models.logprobs import token_logps

HEAD_TOLERANCE_NATS = {torch.float32: 1e-3, torch.float64: 1e-6}


@torch.no_grad()
def check_head(folder: Path) -> None:
    """Compare packed log-probabilities with those of the model's own forward pass, on a probe.

    Raises:
        ValueError: they differ, as with an architecture that scales or caps its logits, or whose attention has a window.
    """
    policy = load_policy(folder)
    ids = torch.randint(0, policy.config.vocab_size, (24,), generator=torch.Generator().manual_seed(0))
    logp_S, _ = token_logps(policy, pack([Group(ids[:8].tolist(), [ids[8:].tolist()])]))
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=policy.dtype, attn_implementation="eager").eval()
    logits = plain(input_ids=ids[None]).logits[0, 7:-1].float()
    own_S = logits.log_softmax(-1).gather(-1, ids[8:, None])[:, 0]
    worst = float((own_S - logp_S).abs().max())
    if worst > HEAD_TOLERANCE_NATS.get(policy.dtype, 0.3):
        raise ValueError(
            f"{type(policy).__name__} is not supported: packed log-probabilities differ from the model's own by {worst:.3g} nats, "
            "which happens where an architecture caps or scales logits or limits attention to a window. "
            "Use a Llama-, Qwen- or Mistral-shaped model"
        )
    window = getattr(policy.config, "sliding_window", None)
    if window and getattr(policy.config, "use_sliding_window", True):
        raise ValueError(
            f"{type(policy).__name__} limits attention to a window of {window} tokens, which packed attention does not: "
            "use a model without one, or set sliding_window to null in its config.json and keep sequences shorter than it"
        )


def check_eos_is_trained(groups: list[Group], eos_ids: list[int]) -> None:
    """A policy that never sees its end-of-turn token as a target never stops.

    Raises:
        ValueError: no group's last scored token is one of ``eos_ids``.
    """
    ends = sum(group.completions[-1][-1] in eos_ids for group in groups)
    if not ends:
        raise ValueError(
            f"none of {len(groups)} demonstrations ends in an end-of-turn token ({eos_ids}): the policy would never stop. "
            "The chat template must close assistant turns with the tokenizer's eos_token"
        )


def check_completions_end(groups: Sequence[Group], eos_ids: Sequence[int]) -> None:
    """A reward is read at a completion's last token, which must be the end-of-turn token at which the sampler stops.

    Raises:
        ValueError: a completion ends in another token.
    """
    ends = set(eos_ids)
    odd = next(((k, c[-1]) for k, group in enumerate(groups) for c in group.completions if c[-1] not in ends), None)
    if odd is not None:
        raise ValueError(
            f"a completion of example {odd[0]} ends in token {odd[1]}, not in an end-of-turn token ({sorted(ends)}): the reward would be "
            "read where no sampled completion ends. The chat template must close assistant turns with the tokenizer's eos_token"
        )
