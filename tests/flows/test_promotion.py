"""Promotion, whole: real policies, the real evaluate stage, a real registry; some candidates are hacked."""

from collections.abc import Iterator

import pytest
import torch
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.cli.artifacts import find_garbage
from flows.cli.promote import champions, rollback
from flows.promotion import Outcome, PromotionConfig, promotion
from models.configs.promotion import GateConfig
from tasks import decisions, tracking
from tasks.champions import Registry
from tasks.home import home as output_folder
from tasks.process import close_zygote
from tasks.promotion import card_file
from tasks.store import Store
from tests.bench.promotion import RECIPE, World, before_the_gate, judged, made_world, spoil

pytestmark = pytest.mark.timeout(900)  # its policies are made in setup, which a busy machine does slowly
KINDS = {"honest": 2, "length": 1, "over-refusal": 1, "corrupt weights": 1, "report of another": 1, "fewer prompts": 1}


@pytest.fixture(scope="module")
def world(prefect_api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Policies of every kind, evaluated; some of them spoiled afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(tmp_path_factory.mktemp("promotion") / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output_folder() / 'mlflow' / 'mlflow.db'}")
        patch.setenv("POSTTRAIN_THREADS", "1")
        made = made_world(tmp_path_factory.mktemp("letters"), KINDS)
        judged(made)
        spoil(made)
        yield made
    close_zygote()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def outcomes(world: World) -> dict[str, Outcome]:
    """What became of each, against the same champion."""
    return before_the_gate(world)


def refusing(outcome: Outcome) -> set[str]:
    return {check["check"] for check in outcome.record.checks if check["status"] in ("failed", "missing")}


def test_honest_policies_become_champions_and_hacked_ones_do_not(world: World, outcomes: dict[str, Outcome]) -> None:
    for name, (kind, _) in world.candidates.items():
        outcome, champion = outcomes[name], Registry(name).champion()
        assert champion is not None
        if kind.refused_by:
            assert kind.refused_by in refusing(outcome), (name, outcome.record.reasons)
            assert champion.digest == world.champion.digest, name
        else:
            assert outcome.record.accepted and outcome.version == 2, outcome.record.reasons
            assert champion.digest == world.candidates[name][1].digest


def test_refusals_are_written_down_with_their_numbers(outcomes: dict[str, Outcome]) -> None:
    written = {record.name: record for record in decisions.decisions() if record.candidate != "letters/champion"}
    assert written == {name: outcome.record for name, outcome in outcomes.items()}
    refused = written["over-refusal-1"]
    check = next(check for check in refused.checks if check["check"] == "safe/over_refusal not worse")
    assert check["status"] == "failed" and check["gain"]["high"] < -0.05 and check["candidate"] > check["champion"]
    assert refused.gate["primary"] == "accuracy" and any("safe/over_refusal" in reason for reason in refused.reasons)


def test_a_decision_is_a_page_in_prefect_and_a_table_in_mlflow(outcomes: dict[str, Outcome]) -> None:
    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name("posttrain")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'promotion' and tags.`promotion.model` = 'honest-1'")
    files = {file.path for file in client.list_artifacts(runs[0].info.run_id)}
    assert {"decision.json", "decision.md", "model_card.md"} <= files
    with get_client(sync_client=True) as prefect:
        pages = prefect.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["decision-text"])))
    texts = [str(page.data) for page in pages]
    assert any(outcomes["honest-1"].record.id in text and "accepted as champion of honest-1" in text for text in texts)
    card = card_file("honest-1", 2).read_text()
    assert "| beats on accuracy | passed |" in card and "## Limits" in card and outcomes["honest-1"].record.digest in card


def test_the_same_command_again_has_nothing_to_do(world: World, outcomes: dict[str, Outcome]) -> None:
    before = len(decisions.decisions())
    again = promotion(PromotionConfig(candidate=f"{RECIPE}/honest-1", name="honest-1", gate=world.gate()))
    assert again is not None and again.note == "already champion" and len(decisions.decisions()) == before


def test_a_dry_run_decides_and_leaves_nothing(world: World, outcomes: dict[str, Outcome]) -> None:
    before = len(decisions.decisions())
    outcome = promotion(PromotionConfig(candidate=f"{RECIPE}/honest-2", name="fresh", gate=world.gate(), dry_run=True))
    assert outcome is not None and outcome.record.opponent == "nothing"
    assert "name one with gate.baseline" in outcome.record.reasons[0]
    assert len(decisions.decisions()) == before and Registry("fresh").versions() == []


def test_the_first_champion_must_beat_the_baseline_of_its_run(world: World, outcomes: dict[str, Outcome]) -> None:
    gate = world.gate().model_copy(update={"baseline": "champion"})
    config = PromotionConfig(candidate=f"{RECIPE}/honest-2", name="first", gate=gate)
    outcome = promotion(config)
    assert outcome is not None and outcome.record.accepted, outcome and outcome.record.reasons
    assert outcome.record.opponent == "champion, the baseline of its run: there is no champion yet"
    champion = Registry("first").champion()
    assert champion is not None and champion.digest == outcome.record.digest


def test_a_champion_that_is_gone_cannot_be_beaten(world: World, outcomes: dict[str, Outcome]) -> None:
    """A registered digest that no store here has: nothing can be compared with it."""
    gate = GateConfig(primary="reward", baseline="no such policy", resamples=500)
    outcome = promotion(PromotionConfig(candidate=f"{RECIPE}/honest-1", name="gone", gate=gate))
    assert outcome is not None and not outcome.record.accepted and Registry("gone").champion() is None
    assert "it cannot be judged: The run letters-1 has no policy 'no such policy'" in outcome.record.reasons[0]


def test_rollback_and_history(world: World, outcomes: dict[str, Outcome], capsys: pytest.CaptureFixture[str]) -> None:
    assert rollback("honest-2", 0) == 0
    champion = Registry("honest-2").champion()
    assert champion is not None and champion.digest == world.champion.digest
    assert champions("honest-2") == 0
    shown = capsys.readouterr().out
    assert "version 0 -> 1" in shown and "version 1 -> 2" in shown and "version 2 -> 1" in shown
    assert "honest-2: champion is version 1, letters/champion" in shown


def test_garbage_collection_spares_all_champions(world: World, outcomes: dict[str, Outcome]) -> None:
    doomed = {artifact.digest for artifact in find_garbage(Store(output_folder() / "store"), keep=0).artifacts}
    assert world.champion.digest not in doomed and world.candidates["honest-1"][1].digest not in doomed
    assert world.candidates["length-1"][1].digest in doomed


@pytest.mark.parametrize(("candidate", "message"), [("letters/none", "has no policy 'none'. It evaluated"), ("x/y", "no run 'x'")])
def test_a_name_that_means_nothing_is_said(world: World, candidate: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        promotion(PromotionConfig(candidate=candidate, name="nobody"))
