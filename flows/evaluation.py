"""Judge policies that are there already: any number of them, of any runs, on the same prompts and in the same suites.

evaluate[...] -> suites -> behaviour -> comparison -> the page of the run
"""

from prefect import flow
from pydantic import Field, model_validator

from flows.cli.policies import resolve
from flows.judge import JudgedConfig, judge
from tasks.store import Artifact
from tasks.tracking import pipeline


class EvaluationConfig(JudgedConfig):
    """Settings of the flow ``evaluation``. Names are RUN/LABEL, LABEL of the latest run that has it, or the start of a digest."""

    policies: dict[str, str] = Field(
        min_length=1, description="Policies to judge, from the name in the table to that of the artifact, such as dpo: quickstart-3/dpo."
    )
    reference: str = Field(
        default="", description="Name in the table of the policy that KL is measured to; empty: the baseline of the comparison."
    )
    data: str = Field(default="curate", description="Curated data whose held-out prompts are answered, such as quickstart-3/curate.")
    reward: str = Field(default="", description="Reward model whose view is shown too, such as quickstart-3/reward_model; empty: none.")

    @model_validator(mode="after")
    def _named(self) -> "EvaluationConfig":
        for field, name in (("comparison.baseline", self.comparison.baseline), ("reference", self.reference or self.comparison.baseline)):
            if name not in self.policies:
                raise ValueError(f"{field} is {name!r}, which is not among the policies {', '.join(self.policies)}: name one of them")
        return self


@flow(name="evaluation")
def evaluation(config: EvaluationConfig) -> Artifact:
    """Evaluate policies of earlier runs, put them through suites, compare them.

    Args:
        config: which policies, on what, and how.
    """
    with pipeline("evaluation", config):
        policies = {name: artifact(of, "policy") for name, of in config.policies.items()}
        reward = artifact(config.reward, "reward_model") if config.reward else None
        reference = policies[config.reference or config.comparison.baseline]
        return judge(config, policies, reference, artifact(config.data, "dataset"), reward)


def artifact(name: str, kind: str) -> Artifact:
    """The artifact of that name, verified.

    Raises:
        ValueError: nothing is called so, or it is of another kind.
    """
    found = resolve(name).artifact
    if found is None or found.kind != kind:
        raise ValueError(f"{name!r} is {'a folder' if found is None else found.kind}, and a {kind} is needed: name one of the store's")
    return found
