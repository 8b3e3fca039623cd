"""The command line as users type it: help, answers, exit codes. What needs no run is called in this process."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tasks.registry import record_stage, recording
from tasks.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [[name] for name in ("run", "explain", "recipes", "ui", "notify", "chat", "artifacts")]
COMMANDS += [["artifacts", name] for name in ("list", "verify", "gc", "path")]


@pytest.fixture
def cli(home, monkeypatch):
    monkeypatch.setattr("flows.cli.terminal.out.width", 200)

    def call(*arguments: str, code: int = 0, stdin: str | None = None) -> str:
        result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output

    return call


def put(home: Path, kind: str, text: str) -> Artifact:
    store = Store(home / "store")
    staged = store.new_staging()
    (staged / "out").mkdir()
    (staged / "out" / "file.txt").write_text(text)
    artifact = store.put(staged / "out", kind)
    store.discard(staged)
    return artifact


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=lambda command: "-".join(command) or "posttrain")
def test_every_help_has_an_example_that_parses(cli, command):
    text = cli(*command, "--help")
    example = re.search(r"Example: (.*)", text)
    assert example is not None
    words = example.group(1).removeprefix("ls $(").rstrip(" )").split()
    assert words[: 1 + len(command)] == ["posttrain", *command]


def test_help_answers_at_once_without_the_heavy_libraries():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "flows.cli", "--help"], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, since the machine may be busy; 0.15 s where this was written.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.7
    code = "import sys, flows.cli; print({'torch', 'prefect', 'mlflow', 'transformers', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], "no recipe 'quikstart'"),
        (["run", "nowhere.yaml"], "no recipe file"),
        (["explain"], "posttrain run quickstart"),
        (["explain", "tony"], "no run 'tony'"),
        (["chat", "sft"], "Nothing was run yet"),
        (["chat", "./nowhere"], "no folder ./nowhere"),
        (["artifacts", "verify", "abcd"], "0 artifacts start with 'abcd'"),
        (["artifacts", "path", "sft"], "Nothing is called 'sft'"),
        (["artifacts", "gc", "--keep", "-1"], "greater than or equal to 0"),
        (["run"], "Missing argument"),
        (["dance"], "No such command"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_and_returns_2(cli, arguments, words):
    assert words in re.sub(r"\s+", " ", cli(*arguments, code=2))


# Artifacts


def test_artifacts_are_listed_with_the_runs_that_have_them(cli, home):
    with recording("tiny", {}) as run:
        policy = put(home, "policy", "weights")
        record_stage(run, "sft", "sft-1", policy, "computed", 1)
    orphan = put(home, "dataset", "rows")
    shown = cli("artifacts", "list")
    assert re.search(rf"{policy.digest[:12]} +policy +7 B +1 +tiny-1/sft", shown)
    assert re.search(rf"{orphan.digest[:12]} +dataset .*none: artifacts gc removes it", shown)
    assert orphan.digest[:12] not in cli("artifacts", "list", "--run", "tiny")
    assert policy.digest[:12] not in cli("artifacts", "list", "--kind", "dataset")


@pytest.mark.parametrize("name", ["tiny-1/sft", "tiny/sft", "latest/sft", "sft", "digest"])
def test_an_artifact_has_many_names_and_one_path(cli, home, name):
    with recording("tiny", {}) as run:
        policy = put(home, "policy", "weights")
        record_stage(run, "sft", "sft-1", policy, "computed", 1)
    shown = cli("artifacts", "path", policy.digest[:8] if name == "digest" else name)
    assert (Path(shown.strip()) / "file.txt").read_text() == "weights"


def test_a_label_that_a_run_does_not_have_lists_those_it_has(cli, home):
    with recording("tiny", {}) as run:
        record_stage(run, "sft", "sft-1", put(home, "policy", "weights"), "computed", 1)
    assert "The run tiny-1 has no 'dpo'. It has: sft" in cli("artifacts", "path", "tiny/dpo", code=2)


def test_verify_finds_a_flipped_byte(cli, home):
    policy = put(home, "policy", "weights")
    assert "1 of 1 artifacts are whole" in cli("artifacts", "verify")
    path = Store(home / "store").folder(policy.digest) / "file.txt"
    path.chmod(0o644)
    path.write_text("wEights")
    assert "file.txt has other bytes" in cli("artifacts", "verify", code=1)
    assert "file.txt has other bytes" in cli("artifacts", "path", policy.digest[:8], code=1)


def test_gc_removes_what_no_run_has_and_nothing_else(cli, home):
    store = Store(home / "store")
    with recording("tiny", {}) as run:
        kept = put(home, "policy", "weights")
        record_stage(run, "sft", "sft-1", kept, "computed", 1)
        record_stage(run, "dpo", "dpo-1", None, "failed", 1)
    orphan = put(home, "dataset", "rows")
    for key in ("sft-1", "dpo-1", "ppo-1"):
        (store.root / "checkpoints" / key).mkdir()
        (store.root / "checkpoints" / key / "state").write_text("x" * 1024)
        (store.root / "history" / f"{key}.jsonl").write_text("{}")
        (store.root / "records" / "keys" / key).write_text("{}")
        (store.root / "records" / "results" / key).write_text("{}")
        (store.root / "locks" / f"key-{key}.lock").touch()
    (store.root / "staging" / "abandoned").mkdir()

    planned = cli("artifacts", "gc", "--dry-run")
    assert f"Would remove dataset {orphan.digest[:12]}" in planned and store.folder(orphan.digest).exists()
    cli("artifacts", "gc")
    assert [artifact.digest for artifact in store.list()] == [kept.digest]
    assert sorted(path.name for path in (store.root / "checkpoints").iterdir()) == ["dpo-1"]
    assert sorted(path.stem for path in (store.root / "history").iterdir()) == ["dpo-1", "sft-1"]
    for folder in ("keys", "results"):
        assert sorted(path.name for path in (store.root / "records" / folder).iterdir()) == ["dpo-1", "sft-1"]
    assert sorted(path.name for path in (store.root / "locks").iterdir()) == ["key-dpo-1.lock", "key-sft-1.lock"]
    assert list((store.root / "staging").iterdir()) == []


def test_gc_keep_forgets_old_runs_but_not_what_newer_ones_share_with_them(cli, home):
    store = Store(home / "store")
    shared, old, new = (put(home, "policy", text) for text in ("shared", "old", "new"))
    for own in (old, new):
        with recording("tiny", {}) as run:
            record_stage(run, "base", "base-1", shared, "computed", 1)
            record_stage(run, "sft", f"sft-{own.digest}", own, "computed", 1)
    with recording("gsm8k", {}):
        pass
    cli("artifacts", "gc", "--keep", "1")
    assert {artifact.digest for artifact in store.list()} == {shared.digest, new.digest}
    assert "no run 'tiny-1'. The last runs: tiny-2, gsm8k-1" in cli("explain", "tiny-1", code=2)


def test_gc_removes_nothing_while_a_run_lives(cli, home):
    orphan = put(home, "dataset", "rows")
    with recording("tiny", {}):
        assert "tiny-1 is using the store; nothing was removed" in cli("artifacts", "gc", code=1)
    assert Store(home / "store").folder(orphan.digest).exists()


# Recipes


def test_recipes_are_listed_and_each_shows_its_fields(cli, mini, monkeypatch):
    cli("recipes")
    monkeypatch.syspath_prepend(mini.root)
    shown = cli("recipes", mini.recipe)
    assert re.search(r"train\.steps +2 +Steps to take\.", shown)
    assert re.search(r"seed +0 +Seed of everything\.", shown)
