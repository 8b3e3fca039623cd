"""Several reward models read as one: a folder that takes the place of a single reward model wherever one is scored with.

    ensemble.json  report.json  tokenizer.json ...  member-0/{config.json, model.safetensors, scalar_head.safetensors, ...}  member-1/ ...

A member is loaded, scores all that is asked, and is let go before the next: memory is that of one reward model whatever their number,
for the price of reading their weights once a round.

Axes: ``M`` members, ``C`` completions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.packing import Group
from models.heads import RewardRule, ScalarModel, load_rule, load_scalar

ENSEMBLE_FILE = "ensemble.json"


def aggregate_scores(score_MC: Tensor, rule: str, coefficient: float) -> Tensor:
    """The ensemble's reward of each completion, from its members' normalised rewards: ``[C]``.

    mean: mean_m r_m        worst: min_m r_m        uncertainty: mean_m r_m - coefficient * std_m r_m (population deviation)

    By hand: members (1, 3): 2, 1, and with coefficient 0.5: 2 - 0.5 = 1.5.

    Source: Eisenstein et al. 2023; Coste et al. 2024 (worst-case and uncertainty-weighted optimisation), who take off the variance: the
    deviation has the unit of the reward, so that the coefficient does not depend on its scale.
    """
    if rule == "worst":
        return score_MC.amin(0)
    mean_C = score_MC.mean(0)
    return mean_C if rule == "mean" else mean_C - coefficient * score_MC.std(0, correction=0)


@dataclass(frozen=True)
class Ensemble:
    """The members' folders and how their rewards become one."""

    folders: tuple[Path, ...]
    rule: str
    coefficient: float
    device: torch.device | str = "cpu"

    def member_scores(self, groups: Sequence[Group], max_tokens: int) -> Tensor:
        """Every member's reward, normalised by its own rule: ``[M, C]``."""
        return torch.stack([load_scalar(folder, self.device).score(groups, max_tokens) for folder in self.folders])

    def rules(self) -> list[RewardRule]:
        """How each member is read."""
        return [load_rule(folder) for folder in self.folders]

    def probabilities(self, score_MC: Tensor) -> Tensor:
        """Mean over members of P(first beats second), of completions that come in pairs ``[M, 2 P]``: ``[P]``."""
        deviation_M1 = torch.tensor([[rule.deviation] for rule in self.rules()], dtype=score_MC.dtype, device=score_MC.device)
        return torch.sigmoid(deviation_M1 * (score_MC[:, ::2] - score_MC[:, 1::2])).mean(0)

    def score(self, groups: Sequence[Group], max_tokens: int) -> Tensor:
        """The ensemble's reward of every completion, in their order: ``[C]``."""
        return aggregate_scores(self.member_scores(groups, max_tokens), self.rule, self.coefficient)


def load_reward(folder: Path, device: torch.device | str = "cpu") -> ScalarModel | Ensemble:
    """What scores completions: a reward model, or an ensemble of them.

    Raises:
        ValueError: the folder holds neither.
    """
    if not (folder / ENSEMBLE_FILE).is_file():
        return load_scalar(folder, device)
    saved = json.loads((folder / ENSEMBLE_FILE).read_text(encoding="utf-8"))
    return Ensemble(tuple(folder / name for name in saved["members"]), saved["aggregate"], saved["coefficient"], device)


def scalar_folder(folder: Path) -> Path:
    """The folder of one scalar model: of an ensemble its first member, whose backbone a critic can start from."""
    return folder / "member-0" if (folder / ENSEMBLE_FILE).is_file() else folder
