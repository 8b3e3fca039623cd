"""`posttrain compare`: across runs, the same prompts are paired, others are not, and what two runs share is shown once."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.compare import compare
from tasks import registry
from tasks.home import home as home_folder
from tasks.key import save_document
from tasks.registry import record_stage
from tasks.store import Store


def rows(correct: float, first: int = 0) -> list[dict[str, Any]]:
    known = {"n_tokens": 4, "finished": True, "kl_nats": 0.5, "reward": correct}
    answers = [{"text": f"{correct}-{i}", "score": float(i < correct * 10), "correct": i < correct * 10, **known} for i in range(10)]
    return [{"id": f"p{first + i}", "prompt": "q", "sampled": [answer]} for i, answer in enumerate(answers)]


class Runs:
    """Records of runs as a flow leaves them: policies, their evaluations, a comparison."""

    def __init__(self) -> None:
        self.store = Store(home_folder() / "store")

    def stage(self, live: Any, label: str, kind: str, files: dict[str, Any], document: dict[str, Any]) -> dict[str, str]:
        staging = self.store.new_staging()
        for name, value in files.items():
            (staging / name).write_text(json.dumps(value))
        artifact = self.store.put(staging, kind)
        key = f"{document['stage']}-{artifact.digest[:32]}"
        save_document(self.store.root / "keydocs", key, document)
        record_stage(live, label, key, artifact, "computed", 1.0)
        return {"kind": kind, "digest": artifact.digest}

    def add(self, policies: dict[str, list[dict[str, Any]]], reward: str = "r", suites: dict[str, float] | None = None) -> str:
        """A run of these policies; two with the same name and answers are the same artifacts."""
        with registry.recording("tiny", {"seed": len(policies)}, 0) as live:
            for name, own in policies.items():
                trained = {"stage": "dpo", "config": {"beta": name}, "inputs": {}}
                weights = self.stage(live, name, "policy", {"w.json": [name, own]}, trained)
                judge = {"kind": "reward_model", "digest": reward * 64}
                document = {"stage": "evaluate", "config": {"judge": "verifier"}, "inputs": {"policy": weights, "reward": judge}}
                self.stage(live, f"evaluate[{name}]", "report", {"evaluation.json": {"rows": own}, "reward.json": reward}, document)
            for name, value in (suites or {}).items():
                measure = {"name": "accuracy", "mean": value, "low": 0.0, "high": 1.0, "better": "higher", "values": {"a": value}}
                suite = {"suite": "mc", "kind": "multiple_choice", "measures": [measure], "items": [], "notes": []}
                self.stage(live, f"multiple_choice[{name}/mc]", "report", {"suite.json": suite}, {"stage": "multiple_choice"})
            settings = {"baseline": "sft", "primary": "accuracy", "resamples": 200}
            compared = {"stage": "comparison", "config": settings, "seed": 0}
            self.stage(live, "comparison", "report", {"comparison.json": {"rows": []}}, compared)
            return live.name


@pytest.fixture
def runs(home: Path) -> Runs:
    return Runs()


def test_one_run_gives_table_and_page(runs: Runs, home: Path, capsys: pytest.CaptureFixture[str]):
    name = runs.add({"sft": rows(0.4), "dpo": rows(0.9)}, suites={"sft": 0.25, "dpo": 0.75})
    assert compare([name], [], None) == 0
    page = (home / "reports" / name / "report.html").read_text()
    assert "0.900 [" in page and "<h3>mc</h3>" in page and "gain +0.500" in page
    assert str(home / "reports" / name / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_two_runs_on_the_same_prompts_are_paired_and_what_they_share_is_shown_once(runs: Runs, tmp_path: Path):
    first = runs.add({"sft": rows(0.4), "dpo": rows(0.9)})
    second = runs.add({"sft": rows(0.4), "dpo": rows(0.6)})
    compare([first, second], [], tmp_path / "both.html")
    table = (tmp_path / "both.html").read_text().split('id="policies"')[1].split("</table>")[0]
    assert [part.split("<")[0] for part in table.split('<th scope="row">')[1:]] == ["sft", "tiny-1/dpo", "tiny-2/dpo"]
    assert "0.500 [" in table and "0.200 [" in table, "both gains are over the same baseline"


def test_other_prompts_are_not_paired_and_the_page_says_so(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = runs.add({"sft": rows(0.4)})
    second = runs.add({"dpo": rows(0.9, first=5)})
    compare([first, second], [], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert "dpo answered 10 prompts, of which 5 are among the 10 of sft: they are not paired" in page
    assert 'id="gains"' not in page and "0.900 [" in page and "not paired" in capsys.readouterr().out


def test_rewards_of_different_reward_models_have_no_gain(runs: Runs, tmp_path: Path):
    first = runs.add({"sft": rows(0.4)}, reward="a")
    second = runs.add({"dpo": rows(0.9)}, reward="b")
    compare([first, second], [], tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text()
    assert "dpo and sft were evaluated with another reward: not comparable in reward." in page
    assert "+0.500 [" in page and "reward" not in page.split('id="gains"')[1].split("</table>")[0]


def test_chosen_policies_come_with_the_baseline(runs: Runs, tmp_path: Path):
    name = runs.add({"sft": rows(0.4), "dpo": rows(0.9), "ppo": rows(0.1)})
    compare([name], ["ppo"], tmp_path / "one.html")
    table = (tmp_path / "one.html").read_text().split('id="policies"')[1].split("</table>")[0]
    assert "sft" in table and "ppo" in table and "dpo" not in table


def test_what_cannot_be_compared_is_said(runs: Runs):
    name = runs.add({"sft": rows(0.4)})
    with pytest.raises(ValueError, match="There is no policy grpo in these runs; there is sft"):
        compare([name], ["grpo"], None)
    with pytest.raises(ValueError, match="There is no run 'nowhere-1'"):
        compare(["nowhere-1"], [], None)
    with registry.recording("curation", {}) as live:
        pass
    with pytest.raises(ValueError, match="curation-1 has evaluated no policy"):
        compare([live.name], [], None)
