"""The learned value function of PPO and the actor-critic."""

from pathlib import Path

import torch

from models.ensembles import scalar_folder
from models.heads import ScalarModel, load_scalar, new_scalar


def new_critic(source: str, value_head: str, reward: Path | None, policy: Path, seed: int, device: torch.device) -> ScalarModel:
    """The reward model's backbone where that alone is the reward (of an ensemble the first member's), else the policy's.

    ``value_head`` says how its head starts.

    A reward model's head is trained at end-of-turn tokens only: at the tokens before, it reads values several deviations off, and the
    first rounds would go into unlearning them. A head of zeros starts at 0, the mean of normalised rewards.

    Source: Ouyang et al. 2022, appendix C.4, for the start from the reward model.
    """
    if source != "reward_model":
        return new_scalar(policy, seed, device)
    assert reward is not None, "the reward was loaded from it"
    critic = load_scalar(scalar_folder(reward), device, trainable=True)
    with torch.no_grad():
        if value_head == "zero":
            critic.head.weight.zero_()
            critic.head.bias.zero_()
        else:
            critic.head.weight.div_(critic.rule.deviation)
            critic.head.bias.sub_(critic.rule.mean).div_(critic.rule.deviation)
    return critic
