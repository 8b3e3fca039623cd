"""AI judges in a panel: an endpoint beside a verifier, with what it costs; a local policy."""

from pathlib import Path

from data.judgements import Candidates
from data.records import Message
from models.configs.preferences import PreferencesConfig
from models.panel import Evidence, judge_rows
from models.run import Run


def row(name: str, *texts: str) -> Candidates:
    return Candidates(name, "toy", (Message("user", f"{name}?"),), texts, ("sft@1.0",) * len(texts), "1", "number")


def test_an_endpoint_votes_beside_the_verifier(server, run: Run, tmp_path: Path):
    judge = {"kind": "language_model", "ai": {"backend": "endpoint", "model": "m", "url": server.url}}
    config = PreferencesConfig.model_validate({"judges": [judge, {"weight": 3.0}]})
    rows = [row("a", "it is 1", "it is certainly 2"), row("b", "no idea", "no idea at all")]
    verdicts = judge_rows(config, rows, Evidence(answers=tmp_path / "answers.sqlite"), 0, run)
    assert [v.ranks for v in verdicts.settled] == [(0, 1), (1, 0)], "the verifier outweighs it, and where it ties the longer one wins"
    assert verdicts.metrics["judge/pairs"] == 2 and len(verdicts.judgements) == 4


def test_a_policy_judges(base: Path, run: Run):
    config = PreferencesConfig.model_validate({"judges": [{"kind": "language_model"}]})
    verdicts = judge_rows(config, [row("a", "x", "y")], Evidence(language_model=base), 0, run)
    assert verdicts.judgements[0].judge == "language_model" and len(verdicts.settled[0].ranks) in (0, 2)
