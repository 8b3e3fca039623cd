"""How a flow collects preferences: in one stage, or with people asked in between."""

from collections.abc import Callable, Mapping

from models.configs.preferences import PreferencesConfig
from tasks.collect_preferences import collect_preferences
from tasks.sample_candidates import sample_candidates
from tasks.store import Artifact

AskPeople = Callable[[Artifact], Artifact]


def prefer(
    config: PreferencesConfig,
    policies: Mapping[str, Artifact],
    data: Artifact,
    reward: Artifact | None = None,
    *,
    seed: int,
    name: str = "",
    ask_people: AskPeople | None = None,
    judge_model: Artifact | None = None,
) -> Artifact:
    """Preferences over completions of the policies that the configuration names.

    Args:
        config: writers and judges.
        policies: those that may write, by the name that a writer has in the configuration; the first is the current one.
        data: artifact of curate, with the prompts.
        reward: reward model, for judges of that kind.
        seed: of sampling, and of what is drawn for whom.
        name: to tell several uses in one flow apart.
        ask_people: turns candidates into people's labels, for a judge of kind people.
        judge_model: model that a judge of kind language_model runs where it names none; left out: the current policy.

    Returns:
        The artifact of collect_preferences.

    Raises:
        ValueError: a writer names a policy that is not there; people are to judge and nobody can be asked.
    """
    current = next(iter(policies), "")
    writers = [writer.model_copy(update={"policy": writer.policy or current}) for writer in config.writers]
    if unknown := sorted({writer.policy for writer in writers} - set(policies)):
        raise ValueError(f"preferences.writers names the policy {unknown[0]!r}, and this flow has {', '.join(policies)}: use one of them")
    config = config.model_copy(update={"writers": writers})
    writing = {writer.policy: policies[writer.policy] for writer in writers}
    judging = reward if config.has("reward_model") else None
    asked = any(judge.kind == "language_model" and judge.ai.backend == "policy" and not judge.ai.model for judge in config.judges)
    own = (judge_model or policies[current]) if asked else None
    collect, sample = (stage.named(name) if name else stage for stage in (collect_preferences, sample_candidates))
    if not config.has("people"):
        return collect(config, writing, data, judging, judge_model=own, seed=seed)
    if ask_people is None:
        raise ValueError("a judge is people, and this flow does not ask any: use another kind of judge")
    candidates = sample(config.candidates, writing, data, seed=seed)
    return collect(config, {}, data, judging, candidates, ask_people(candidates), own, seed=seed)
