"""How a flow gets a second reward model, by which policies are judged that were not trained on it."""

from models.configs.held_out_reward import HeldOutRewardConfig
from models.configs.reward_model import RewardModelConfig
from models.seeds import derive_seed
from tasks.reward_model import reward_model
from tasks.store import Artifact

LABEL = "held out"


def held_out_reward(
    config: HeldOutRewardConfig, first: RewardModelConfig, policy: Artifact, preferences: Artifact, *, seed: int
) -> Artifact | None:
    """A reward model of the pairs that no other stage trains on, with another seed; None where the configuration asks for none.

    It shares no prompt with the reward model that policies are trained on, nor with DPO and its relatives, which learn from all other
    pairs. It does share the policy that both start from: what that one gets wrong, both may.

    Args:
        config: whether there is to be one.
        first: settings of the reward model that policies are trained on.
        policy: whose backbone it starts from.
        preferences: artifact with held-out pairs.
        seed: of the flow; its own is derived from it.

    Returns:
        The artifact of reward_model[held out], whose report is of the pairs that the first one was trained on.
    """
    if not config.train:
        return None
    return reward_model.named(LABEL)(config.settings(first), policy, preferences, seed=derive_seed(seed, "held-out reward model"))
