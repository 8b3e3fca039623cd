"""`posttrain promote`, `rollback`, `champions`: what is said before anything starts, and what a decision looks like."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.promote import _checks, _gate, champions
from models.configs.promotion import GateConfig
from tasks import decisions
from tasks.decisions import DecisionRecord


def test_a_gate_file_replaces_defaults(tmp_path: Path):
    path = tmp_path / "gate.yaml"
    path.write_text("primary: reward\nguards:\n  - {measure: accuracy, margin: 0.02}\n")
    gate = _gate(path)
    assert (gate.primary, gate.guards[0].measure, gate.min_prompts) == ("reward", "accuracy", GateConfig().min_prompts)
    assert _gate(None) == GateConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("primary: [", "is not valid YAML"),
        ("primery: reward", "primery: there is no such field; did you mean 'primary'"),
        ("kl_ceiling_nats: -1", "kl_ceiling_nats = -1: must be more than 0"),
        ("guards: [{margin: 1}]", "measure: is required"),
    ],
)
def test_a_gate_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str):
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        _gate(tmp_path / "gate.yaml")


def test_a_missing_gate_file_is_a_mistake_of_use(home: Path):
    result = CliRunner().invoke(app, ["promote", "tiny/dpo", "--gate", "none.yaml"])
    assert result.exit_code == 2


def record(**more) -> DecisionRecord:
    fields = {"candidate": "tiny-1/dpo", "digest": "ab" * 32, "opponent": "champion version 1", "opponent_digest": "cd" * 32}
    rest = {"champion": 1, "reasons": [], "checks": [], "gate": {}, "accepted": True}
    return decisions.decision("promote", "m", **{**fields, **rest, **more})


def test_decisions_are_kept_in_order_and_never_changed(home: Path):
    first, second = record(accepted=False, reasons=["KL ceiling: 60 nats"]), record()
    for one in (first, second):
        decisions.write(one)
    decisions.write(first.model_copy(update={"reasons": []}))
    assert decisions.decisions("m") == [first, second]
    assert decisions.decisions("other") == [] and decisions.kept_digests() == {second.digest}
    decisions.write_move(second, 1, 2)
    decisions.write_move(second, 5, 6)
    move = decisions.move_of(second.id)
    assert move is not None and (move.before, move.after) == (1, 2) and decisions.move_of(first.id) is None


def test_what_is_no_decision_is_passed_over(home: Path):
    decisions.folder().mkdir(parents=True)
    (decisions.folder() / "20260101T000000000000Z-00000000.json").write_text("{")
    (decisions.folder() / "notes.json").write_text("{}")
    assert decisions.decisions() == []


def test_the_history_shows_refusals_and_what_was_not_carried_out(home: Path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for one in (record(accepted=False, reasons=["KL ceiling: 60 \x1b[31mnats"]), record()):
        decisions.write(one)
    assert champions("m") == 0
    shown = capsys.readouterr().out
    assert "refused" in shown and "60 nats" in shown and "not carried out" in shown
    assert "m: MLflow cannot be asked who is champion" in shown


def test_numbers_stand_beside_the_words(capsys):
    from flows.cli.terminal import out

    check = {"check": "beats on accuracy", "status": "failed", "candidate": 0.5, "champion": None, "words": "gain +0.0"}
    out.print(_checks([check]))
    shown = capsys.readouterr().out
    assert "beats on accuracy" in shown and "failed" in shown and "0.500" in shown and "gain +0.0" in shown
