"""Loading a judge that is a language model: behind an endpoint, or run here."""

import uuid
from pathlib import Path

import torch

from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache
from models.judging.endpoint import Endpoint
from models.judging.local import LocalJudge
from models.judging.pairwise import PairwiseJudge


def load_ai_judge(
    config: AIJudgeConfig, *, folder: Path | None, cache: Path, device: torch.device | str, name: str = "", payer: str = ""
) -> PairwiseJudge:
    """The judge that a configuration names.

    Args:
        config: of the judge.
        folder: model folder of the judging policy, where the configuration names none; not read for an endpoint.
        cache: SQLite file of paid answers, shared by all runs; not read for a policy.
        device: where a policy runs.
        name: of the judge in its judgements; empty = ai:<model>.
        payer: on whose account an endpoint's answers go, such as the stage's key; budget and cost are those of the account.

    Raises:
        ValueError: the key's environment variable is not set, no folder is given, or the policy cannot tell A from B at one position.
    """
    if config.backend == "endpoint":
        return PairwiseJudge(config, Endpoint(config, AnswerCache(cache), payer or uuid.uuid4().hex), name or f"ai:{config.model}")
    chosen = Path(config.model) if config.model else folder
    if chosen is None:
        raise ValueError("an AI judge with backend = policy needs a model: name a folder in model, or give the stage a policy")
    return PairwiseJudge(config, LocalJudge(config, chosen, device), name or f"ai:{chosen.name if config.model else 'policy'}")
