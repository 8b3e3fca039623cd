"""Retraining, whole: a tiny model, real stages, a real registry, a real Prefect API. One test's champion is the next one's."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import State
from prefect.client.schemas.responses import SetStateStatus
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL
from prefect.states import Scheduled

from data.judgements import Candidates
from data.labelling.records import Answer
from data.records import Message, record_id
from flows import approval
from flows.labelling import pausing, tasks
from flows.retrain import RetrainConfig, retrain
from models.configs.labelling import LabellingConfig
from models.evidence import trained_prompts, training_tables
from tasks import attempts, decisions, registry
from tasks.champions import Registry
from tasks.home import home as output_folder
from tasks.process import close_zygote
from tasks.registry import RunRecord
from tasks.store import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_api")]
ROOT = Path(__file__).resolve().parents[2]
TINY = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "kv_heads": 2, "max_position": 128}


@dataclass
class World:
    """Files of rows, and a recipe that learns from them to say yes."""

    folder: Path

    def config(self, name: str = "yes", **changes: Any) -> RetrainConfig:
        """The settings, with some changed."""
        sources = [
            {"kind": "file", "name": str(self.folder / "train*.jsonl"), "role": "train"},
            {"kind": "file", "name": str(self.folder / "test.jsonl"), "role": "test", "verifier": "exact"},
        ]
        settings: dict[str, Any] = {
            "name": name,
            "base_model": {"kind": "scratch", "dtype": "float32", "scratch": TINY},
            "curate": {"sources": sources, "demonstrations": -1, "prompts": 0, "test_prompts": -1},
            "sft": {"epochs": 12, "batch_size": 8, "optim": {"learning_rate": 5e-3}},
            "dpo": {"batch_size": 8},
            "evaluate": {"samples_per_prompt": 2, "greedy": False, "sampling": {"max_tokens": 5}},
            "gate": {"guards": [], "behaviour": "off", "min_prompts": 20, "resamples": 200, "kl_ceiling_nats": 1e4},
            "comparison": {"baseline": "incumbent", "resamples": 200},
        }
        return RetrainConfig.model_validate(settings | changes)

    def write(self, name: str, rows: list[dict[str, str]]) -> None:
        """Add rows to a file."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)


def rows(first: int, last: int) -> list[dict[str, str]]:
    return [{"prompt": f"Is {n} a number?", "completion": "yes", "answer": "yes"} for n in range(first, last)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_HOME", str(tmp_path_factory.mktemp("retrain") / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output_folder() / 'mlflow' / 'mlflow.db'}")
        patch.setenv("POSTTRAIN_THREADS", "1")
        patch.setattr(approval, "LOOK_EVERY_S", 0.05)
        patch.setattr(pausing, "ASK_EVERY_S", 0.1)
        (output_folder() / "mlflow").mkdir(parents=True)
        made = World(tmp_path_factory.mktemp("rows"))
        made.write("train.jsonl", rows(0, 48))
        made.write("test.jsonl", rows(1000, 1040))
        yield made
    close_zygote()
    torch.set_num_threads(threads)


def run(config: RetrainConfig) -> State:
    state: Any = retrain(config, return_state=True)
    assert state.is_completed(), state
    return state


def runs() -> list[RunRecord]:
    return registry.runs("retrain")


def champion(name: str = "yes") -> int:
    found = Registry(name).champion()
    return found.number if found else 0


def computed(record: RunRecord) -> list[str]:
    return [label for label, stage in record.stages.items() if stage.outcome != "hit"]


def flow_run(config: RetrainConfig) -> UUID:
    """A flow run that is to be started."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run(retrain, parameters={"config": config.model_dump(mode="json")}).id


def start(config: RetrainConfig, flow_run: UUID) -> State:
    """Run it here, as a worker would; a second time as a retry."""
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(flow_run)
    state: Any = run_flow(retrain, flow_run=found, parameters={"config": config}, return_type="state")
    return state


KILLED = """
import sys
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from flows.retrain import RetrainConfig, retrain
with get_client(sync_client=True) as client:
    found = client.read_flow_run(sys.argv[1])
run_flow(retrain, flow_run=found, parameters={"config": RetrainConfig.model_validate_json(sys.argv[2])})
"""


def test_the_first_champion_is_made_although_the_run_was_killed_before_its_promotion(world: World) -> None:
    config = world.config()
    own = flow_run(config)
    environment = {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "POSTTRAIN_FAILPOINT": "verified"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(own), config.model_dump_json()], cwd=ROOT, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL and champion() == 0
    assert {"base_model", "curate", "sft", "evaluate[sft]"} <= set(computed(runs()[-1]))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(own, Scheduled(), force=True)
    state = start(config, own)
    assert (state.name, state.message) == ("Promoted", "retrain-1/sft is champion v1 of yes"), state
    assert computed(runs()[-1]) == [] and len(Registry("yes").versions()) == 1
    accepted = [record for record in decisions.decisions("yes") if record.accepted]
    assert len({record.digest for record in accepted}) == 1
    with get_client(sync_client=True) as client:  # once more: it is over
        client.set_flow_run_state(own, Scheduled(), force=True)
    assert start(config, own).message == state.message and len(Registry("yes").versions()) == 1


def test_with_nothing_new_it_ends_at_once_and_computes_nothing(world: World) -> None:
    before, begin = len(runs()), time.monotonic()
    state = run(world.config())
    assert (state.name, state.message) == ("NothingNew", "nothing new since champion v1")
    assert len(runs()) == before and time.monotonic() - begin < 10
    with get_client(sync_client=True) as client:
        tables = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["whats-new"])))
    shown = json.loads(str(max(tables, key=lambda table: table.created or datetime.min).data))
    assert {row["what"]: row["new"] for row in shown} == {"base model": "no", "data train.jsonl": "no", "labels": "no"}


def test_a_slot_that_two_schedules_ask_for_is_worked_on_once(world: World) -> None:
    config = world.config()
    with get_client(sync_client=True) as client:
        schedules = [
            DeploymentScheduleCreate(schedule=CronSchedule(cron=cron, timezone="Europe/Berlin")) for cron in ("0 * * * *", "0 */1 * * *")
        ]
        made = client.create_deployment(client.create_flow(retrain), name="nightly", schedules=schedules)
        now = datetime.now(UTC)
        window = {"start_time": (now - timedelta(hours=1)).isoformat(), "end_time": now.isoformat(), "max_runs": 1}
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": made}, json=window)
        found = [
            one.id for one in client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[made])))
        ]
    assert len(found) == 2
    states = [start(config, one) for one in found]
    assert [state.name for state in states] == ["NothingNew", "Skipped"]
    assert str(found[0]) in str(states[1].message)
    with get_client(sync_client=True) as client:  # the run that has the slot may come back
        client.set_flow_run_state(found[0], Scheduled(), force=True)
    assert start(config, found[0]).name == "NothingNew"


def test_new_rows_are_learned_beside_a_share_of_the_old_ones(world: World) -> None:
    world.write("train.jsonl", rows(48, 60))
    world.write("train-more.jsonl", [*rows(60, 70), *rows(1000, 1002)])  # two prompts of it are held-out ones
    strict = {**world.config().gate.model_dump(), "minimum_gain": 1.0}  # no candidate can gain that
    state = run(world.config(gate=strict))
    assert state.name == "Refused" and "beats on accuracy" in str(state.message), state
    assert decisions.decisions("yes")[-1].candidate == f"{runs()[-1].name}/sft" and champion() == 1
    data = Store(output_folder() / "store").path(runs()[-1].artifacts()["curate"])
    learned = {row["messages"][0]["content"] for row in pq.read_table(data / "demonstrations.parquet").to_pylist()}
    new = {row["prompt"] for row in rows(48, 70)}
    assert new <= learned and len(learned - new) == round(0.3 * 48)
    assert trained_prompts(data, training_tables(data)) == 0
    assert "in_test_set" in (data / "rejected.jsonl").read_text()
    again = run(world.config(gate=strict))
    assert again.name == "NothingNew" and f"nothing new since the candidate {runs()[-1].name}/sft" in str(again.message)


def label(world: World, first: int, last: int) -> None:
    """People say that yes is better than no."""
    asked = [Message("user", row["prompt"]) for row in rows(2000, 2040)]
    candidates = [Candidates(record_id((one,)), "test", (one,), ("no", "yes"), ("a", "b")) for one in asked]
    store = tasks.register(candidates, LabellingConfig(), 0)
    store.add_annotator("ada", "token", by_link=False)
    for _ in range(first, last):
        position = store.next_open("ada")
        assert position is not None
        place = store.place("ada", position)
        assert place is not None
        store.label("ada", position, Answer((1, 0), -2), form=f"form-{position}")


def test_new_labels_of_people_are_learned_from(world: World) -> None:
    curated = world.config().curate.model_copy(update={"demonstrations": 0, "preferences": -1})
    strict = {**world.config().gate.model_dump(), "minimum_gain": 1.0}
    config = world.config(method="dpo", curate=curated, news={"min_labels": 8}, gate=strict)
    files = [source.model_copy(update={"name": str(world.folder / "train.jsonl")}) for source in curated.sources[:1]]
    config = config.model_copy(update={"curate": curated.model_copy(update={"sources": [*files, curated.sources[1]]})})
    label(world, 0, 4)
    Path(world.folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(0, 48)))  # as the champion knew it
    state = run(config)
    assert state.name == "NothingNew", state  # four labels are not worth it
    label(world, 4, 12)
    state = run(config)
    record = runs()[-1]
    assert state.name == "Refused" and decisions.decisions("yes")[-1].candidate == f"{record.name}/dpo"
    data = Store(output_folder() / "store").path(record.artifacts()["curate"])
    pairs = pq.read_table(data / "preferences.parquet").to_pylist()
    assert len(pairs) == 12 and {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("yes", "no")}
    assert "base_model" not in record.stages  # from the champion


@dataclass
class Asked:
    """What a person sees, and does."""

    typed: str

    def __call__(self, name: str) -> None:
        flow_run = _wait_for(lambda: next((one.flow_run for one in attempts.attempts(name) if one.status == "asked"), ""))
        with get_client(sync_client=True) as client:
            _wait_for(lambda: (state := client.read_flow_run(UUID(flow_run)).state) and state.is_paused())
            candidate = attempts.attempts(name)[-1].words.split()[5]
            given = {"candidate": self.typed.format(candidate)}
            _wait_for(lambda: client.resume_flow_run(UUID(flow_run), run_input=given).status == SetStateStatus.ACCEPT)


def _wait_for(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize(("name", "typed", "ends", "version"), [("right", "{} ", "Promoted", 1), ("wrong", "not {}", "Refused", 0)])
def test_a_person_types_the_name_of_the_candidate(world: World, name: str, typed: str, ends: str, version: int) -> None:
    person = threading.Thread(target=copy_context().run, args=(Asked(typed), name))
    person.start()
    state = run(world.config(name, approval={"asked": True, "patience_h": 0.1}))
    person.join(timeout=60)
    assert state.name == ends and champion(name) == version, state
    last = decisions.decisions(name)[-1]
    assert last.accepted == bool(version)
    if not version:
        assert "was typed, and not wrong-" in last.reasons[0] and last.checks


def test_a_suspended_run_goes_on_at_the_question(world: World) -> None:
    """Nobody's process waits: a worker starts the run again after the answer."""
    config = world.config("later", approval={"asked": True, "while_waiting": "suspend"})
    with get_client(sync_client=True) as client:
        made = client.create_deployment(client.create_flow(retrain), name="suspending")
        own = client.create_flow_run_from_deployment(made).id
        with pytest.raises(Pause):
            start(config, own)
        assert client.read_flow_run(own).state_name == "Suspended" and champion("later") == 0
        waiting = run(config)  # the next slot: it neither trains nor asks again
        assert waiting.name == "NothingNew" and "a person is asked for later-" in str(waiting.message)
        candidate = attempts.attempts("later")[-1].words.split()[5]
        client.resume_flow_run(own, run_input={"candidate": candidate})
    assert start(config, own).name == "Promoted" and champion("later") == 1
    first, again = registry.runs("suspending")  # runs of a deployment are named after it
    assert "sft" in first.stages and "sft" not in again.stages  # nothing but the question, and the gate


def test_silence_refuses(world: World) -> None:
    state = run(world.config("silent", approval={"asked": True, "patience_h": 2 / 3600}))
    assert state.name == "Refused" and "nobody typed silent-" in str(state.message) and champion("silent") == 0
    assert "approval: nobody typed" in decisions.decisions("silent")[-1].reasons[0]
    again = run(world.config("silent", approval={"asked": True}))
    assert again.name == "NothingNew" and "nothing new since the candidate" in str(again.message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curate": {"sources": [{}]}}, "none with role test"),
        ({"method": "sft_dpo"}, "learns from curate.preferences, which is 0"),
        ({"method": "grpo"}, "learns from curate.prompts, which is 0"),
        ({"evaluate": {"judge": "reward_model"}}, "the reward model learns from curate.preferences"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_computed(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        world.config(**changes)
