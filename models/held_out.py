"""Which preferences a reward model learns from, and which are left to measure it or to train a second one.

Preference data comes in two tables that share no prompt: what every stage trains on, and what is held out. A second reward model, by which
policies are judged that never saw it, is trained on the held-out table: a half of the training table would not do, because DPO and its
relatives learn from all of it, the noise of its labels included. Whoever wants it stronger holds out more (``preferences.test_share``).
"""

from pathlib import Path

from data.records import Preference, Ranking, Tie, normalised_text
from data.tables import read_table

TABLES = {"train": "preferences.parquet", "test": "test_preferences.parquet"}


def other_part(part: str) -> str:
    """Where the pairs are that a model of this part has not seen."""
    return "test" if part == "train" else "train"


def require_apart(folder: Path) -> None:
    """Make sure that a reward model can be trained on the held-out pairs and still be held out itself.

    Raises:
        ValueError: there are none, or one has a prompt that is trained on as well.
    """
    if not (folder / TABLES["test"]).is_file():
        raise ValueError(
            f"pairs is test and {folder} has no {TABLES['test']}: hold out pairs (preferences.test_share, or curate.test_preferences), or "
            "train no second reward model"
        )
    held_out = _prompts(folder / TABLES["test"], Preference)
    shared = held_out & (_prompts(folder / TABLES["train"], Preference) | _prompts(folder / "ties.parquet", Tie))
    if shared:
        raise ValueError(
            f"{len(shared)} of {len(held_out)} held-out prompts in {folder} are trained on too, such as {min(shared)[:80]!r}: a reward "
            "model of them would be held out from nothing; split the data by prompt"
        )


def trained_prompts(folder: Path, part: str) -> set[str]:
    """Normalised texts of the prompts that a reward model of this part has learned from, at most."""
    held_out = _prompts(folder / TABLES["test"], Preference)
    if part == "test":
        return held_out
    ranked = _prompts(folder / "rankings.parquet", Ranking) - held_out
    return _prompts(folder / TABLES["train"], Preference) | _prompts(folder / "ties.parquet", Tie) | ranked


def _prompts(table: Path, kind: type[Preference] | type[Ranking] | type[Tie]) -> set[str]:
    return {normalised_text(row.prompt) for row in read_table(table, kind)} if table.is_file() else set()
