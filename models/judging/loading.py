"""Loading a judge that is a language model: behind an endpoint, or run here."""

import uuid
from pathlib import Path

import torch

from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache
from models.judging.endpoint import Endpoint
from models.judging.local import LocalJudge
from models.judging.pairwise import PairwiseJudge
from models.judging.questions import PAIRWISE, Form


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
    asked = load_asked(config, folder=folder, cache=cache, device=device, payer=payer)
    return PairwiseJudge(config, asked, name or ai_name(config))


def load_asked(
    config: AIJudgeConfig, *, folder: Path | None, cache: Path, device: torch.device | str, payer: str = "", form: Form = PAIRWISE
) -> Endpoint | LocalJudge:
    """Whoever answers single questions of a form; arguments and errors as ``load_ai_judge``."""
    if config.backend == "endpoint":
        return Endpoint(config, AnswerCache(cache), payer or uuid.uuid4().hex, form)
    chosen = Path(config.model) if config.model else folder
    if chosen is None:
        raise ValueError("an AI judge with backend = policy needs a model: name a folder in model, or give the stage a policy")
    return LocalJudge(config, chosen, device, form)


def ai_name(config: AIJudgeConfig) -> str:
    """What a judge that has no name of its own is called: ai:<model>."""
    return f"ai:{Path(config.model).name if config.backend == 'policy' and config.model else config.model or 'policy'}"
