"""The command line: `posttrain run`, `status`, `explain`, `compare`, `artifacts`, `label`, `labels`, `lint`, `ui`, `serve`, `watch`,
`notify`, `chat`, `recipes`, `promote`, `rollback`, `champions`.

Only names and help texts are here: a command imports what it needs when it runs, so that `posttrain --help` answers at once.

Exit codes: 0 done, 1 the work failed, 2 the command cannot be carried out as given, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

USAGE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="posttrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Post-train a language model end to end: every stage cached, resumable and tracked.\n\n"
    "[bold]Example:[/bold] posttrain run quickstart",
)
artifacts_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="What runs have made: list, verify, remove.\n\n[bold]Example:[/bold] posttrain artifacts list --run quickstart",
)
app.add_typer(artifacts_app, name="artifacts")

labels_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Labels of people: list, report, export, import.\n\n[bold]Example:[/bold] posttrain labels report latest",
)
app.add_typer(labels_app, name="labels")

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what the stages log, and the traceback of an error.")]
TaskName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run or recipe, RUN/LABEL, a task of `posttrain labels list`, or a candidates.parquet.")
]
ModelName = Annotated[str, typer.Option("--name", metavar="MODEL", help="The registered model.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run (quickstart-3), a recipe (its latest run) or 'latest'.")]


def main() -> None:
    """Entry point of the console script."""
    app()


def _carry_out(command: Callable[[], int], verbose: bool = False) -> None:
    """Run a command. What the user can put right is said in a line; everything else is a bug and shows its traceback."""
    from flows.cli.terminal import complain

    try:
        code = command()
    except KeyboardInterrupt:
        complain("Stopped.")
        code = INTERRUPTED
    except ValueError as error:
        if verbose:
            raise
        complain(str(error))
        code = USAGE
    except BrokenPipeError:  # `posttrain artifacts list | head`
        sys.stderr.close()
        code = 0
    raise typer.Exit(code)


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of `posttrain recipes`, or the path of a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace one value of the config; may be given several times.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same as --set seed=N.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which stages would run, why, and in how much memory.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run a recipe. Stages whose inputs, code and config did not change are not computed again; a killed one goes on where it was.

    [bold]Example:[/bold] posttrain run quickstart --set dpo.beta=0.2
    """
    from flows.cli.run import run

    _carry_out(lambda: run(recipe, settings or [], seed=seed, dry_run=dry_run, verbose=verbose), verbose)


@app.command("status")
def status_command(
    name: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run, a recipe (its latest run) or 'latest'; left out: all that run now.")
    ] = "",
) -> None:
    """Say what runs now in this output folder, whoever started it: its stage, how far it is, the time left.

    Exit codes: 0 it is running, 3 nothing is, or the run has finished, 1 the run failed or was stopped.

    [bold]Example:[/bold] posttrain status quickstart
    """
    from flows.cli.status import status

    _carry_out(lambda: status(name))


@app.command("explain")
def explain_command(name: RunName = "latest") -> None:
    """Say for each stage of a run whether it was computed, and which part of its key had changed.

    [bold]Example:[/bold] posttrain explain quickstart-2
    """
    from flows.cli.explain import explain

    _carry_out(lambda: explain(name))


@app.command("compare")
def compare_command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs (quickstart-3) or recipes (their latest run).")],
    policies: Annotated[
        list[str] | None,
        typer.Option("--policy", metavar="NAME", help="Only these and the baseline; may be given several times."),
    ] = None,
    target: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Where to write the page.")] = None,
) -> None:
    """Compare the policies of one run or several: print the table and write one HTML page with everything that is known of them.

    The baseline is that of the first run. Policies that answered other prompts are shown and not paired.

    [bold]Example:[/bold] posttrain compare quickstart-2 quickstart-3 --policy dpo --out report.html
    """
    from flows.cli.compare import compare

    _carry_out(lambda: compare(runs, policies or [], target))


@app.command("recipes")
def recipes_command(
    recipe: Annotated[str | None, typer.Argument(help="Show every field of this recipe's config.")] = None,
) -> None:
    """List the recipes; with a name, every field that --set can replace, its value and its meaning.

    [bold]Example:[/bold] posttrain recipes quickstart
    """
    from flows.cli.show import show_recipe, show_recipes

    _carry_out(lambda: show_recipe(recipe) if recipe else show_recipes())


@app.command("ui")
def ui_command(
    prefect_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Prefect server; another one if it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the MLflow server; another one if it is taken.")] = 5000,
) -> None:
    """Serve the Prefect and MLflow UIs on loopback until Ctrl-C. Runs started meanwhile appear live.

    [bold]Example:[/bold] posttrain ui --mlflow-port 5001
    """
    from flows.cli.ui import ui

    _carry_out(lambda: ui(prefect_port, mlflow_port))


@app.command("serve")
def serve_command(
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Only this recipe, flow or recipe's YAML file; may be given several times."),
    ] = None,
    ui: Annotated[bool, typer.Option("--ui", help="Start `posttrain ui` too, if it does not run.")] = False,
) -> None:
    """Register every recipe and flow with the Prefect server, and run what is started in its pages on this machine, until Ctrl-C.

    Ctrl-C or SIGTERM: nothing new starts, every run saves, within 30 s, and is Cancelled; Retry on its page goes on from there.

    [bold]Example:[/bold] posttrain serve --ui --name quickstart --name mine.yaml
    """
    from flows.cli.serve import serve

    _carry_out(lambda: serve(names or [], ui))


@app.command("watch")
def watch_command(
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Beside a Prefect worker: end the runs of this machine whose process died, and free what they held.

    [bold]Example:[/bold] PREFECT_API_URL=http://server:4200/api posttrain watch
    """
    from flows.cli.watch import watch

    _carry_out(lambda: watch(once))


@app.command("notify")
def notify_command(
    block: Annotated[
        str,
        typer.Argument(metavar="[TYPE/NAME]", help="A notification block of the server; else the webhook in POSTTRAIN_NOTIFY_URL."),
    ] = "",
    when: Annotated[
        list[str] | None,
        typer.Option("--when", metavar="OCCASION", help="failed, late, waiting or completed; may be given several times."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Take the notifications away.")] = False,
) -> None:
    """Have the Prefect server send a message when a run of a deployment fails or crashes, is late, waits for a person, or is done.

    Without --when: failed, late and waiting.

    [bold]Example:[/bold] posttrain notify --when failed --when completed
    """
    from flows.cli.notify import notify

    _carry_out(lambda: notify(block, when or ["failed", "late", "waiting"], off))


@app.command("chat")
def chat_command(
    policy: Annotated[str, typer.Argument(help="A policy of the latest run (sft), of any run (quickstart-3/dpo), a digest or a folder.")],
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 always takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Sample among the tokens that hold this share of the mass.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, max=8192, help="Longest answer, in tokens.")] = 256,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling noise.")] = 0,
) -> None:
    """Talk to a policy in the terminal. /reset starts anew, /quit or Ctrl-D ends. dpo@40 is the snapshot of dpo after 40 updates.

    [bold]Example:[/bold] posttrain chat quickstart/grpo --temperature 0
    """
    from flows.cli.chat import ChatSettings, chat

    _carry_out(lambda: chat(policy, ChatSettings(temperature, top_p, max_tokens, system, seed)))


@app.command("lint")
def lint_command(
    name: Annotated[str, typer.Argument(metavar="RUN|PATH", help="A run, RUN/LABEL, a folder with preferences.parquet, or a data file.")],
    form: Annotated[str, typer.Option(help="Shape of a data file's rows; auto tells it from the column names.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that was found and measured as JSON.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample that is looked at in a large set.")] = 0,
) -> None:
    """Look for faults in preference pairs. Exit code 1 if there are any: equal or contradictory pairs, test prompts, triggers, no answers.

    [bold]Example:[/bold] posttrain lint pairs.jsonl
    """
    from flows.cli.lint import lint

    _carry_out(lambda: lint(name, form, as_json, seed))


@app.command("label")
def label_command(
    name: TaskName = "latest",
    annotators: Annotated[
        list[str] | None,
        typer.Option("--annotator", metavar="NAME", help="Someone who labels; gets a link of their own. May be given several times."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; another one if it is taken.")] = 4300,
    host: Annotated[str, typer.Option(help="Address to serve on; one that others can reach needs --annotator.")] = "127.0.0.1",
) -> None:
    """Serve the page on which people say which answer is better. A run that waits for the labels goes on when enough are in.

    [bold]Example:[/bold] posttrain label latest --annotator ada --annotator bob
    """
    from flows.cli.label import Serving, label

    _carry_out(lambda: label(name, Serving(host, port, annotators or [])))


@app.command("promote")
def promote_command(
    candidate: Annotated[str, typer.Argument(metavar="RUN/POLICY", help="A run, or a recipe for its latest run, and a policy of it.")],
    name: ModelName = "policy",
    gate: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML with fields of the gate; else its defaults.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and say why; write nothing down and move nothing.")] = False,
    verbose: Verbose = False,
) -> None:
    """Make a policy the champion if it beats the one that is and is worse in nothing that the gate guards. Exit code 1 if it is refused.

    [bold]Example:[/bold] posttrain promote quickstart/grpo --name arithmetic
    """
    from flows.cli.promote import promote

    _carry_out(lambda: promote(candidate, name, gate, dry_run, verbose), verbose)


@app.command("rollback")
def rollback_command(
    name: ModelName = "policy",
    to: Annotated[int, typer.Option(min=0, metavar="VERSION", help="Version to go back to; 0: the champion before this one.")] = 0,
) -> None:
    """Give the champion's place back to the one before it, after reading all of its bytes.

    [bold]Example:[/bold] posttrain rollback --name arithmetic
    """
    from flows.cli.promote import rollback

    _carry_out(lambda: rollback(name, to))


@app.command("champions")
def champions_command(
    name: Annotated[str | None, typer.Option("--name", metavar="MODEL", help="Only decisions on this registered model.")] = None,
) -> None:
    """List every decision on champions, refusals too, and say who is champion.

    [bold]Example:[/bold] posttrain champions --name arithmetic
    """
    from flows.cli.promote import champions

    _carry_out(lambda: champions(name))


@labels_app.command("list")
def list_labels_command() -> None:
    """List the labelling tasks and how far they are.

    [bold]Example:[/bold] posttrain labels list
    """
    from flows.cli.labels import list_labels

    _carry_out(list_labels)


@labels_app.command("report")
def report_labels_command(name: TaskName = "latest") -> None:
    """Say how far the annotators agree, and how each of them works, as Markdown.

    [bold]Example:[/bold] posttrain labels report latest
    """
    from flows.cli.labels import report_labels

    _carry_out(lambda: report_labels(name))


@labels_app.command("export")
def export_labels_command(
    name: TaskName,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File of JSON lines to write.")],
    form: Annotated[
        Literal["pairs", "rankings"], typer.Option(help="prompt, chosen, rejected; or prompt, completions, ranks, with ties.")
    ] = "rankings",
) -> None:
    """Write the labels of a task to a file in a standard form.

    [bold]Example:[/bold] posttrain labels export latest pairs.jsonl --form pairs
    """
    from flows.cli.labels import export_labels

    _carry_out(lambda: export_labels(name, path, form))


@labels_app.command("import")
def import_labels_command(
    name: TaskName,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File of pairs or rankings.")],
    annotator: Annotated[str, typer.Option(help="Who gave them, where a row does not say it.")] = "imported",
) -> None:
    """Take labels of a file into a task, those whose prompt and completions are one of its items.

    [bold]Example:[/bold] posttrain labels import latest pairs.jsonl --annotator ada
    """
    from flows.cli.labels import import_labels

    _carry_out(lambda: import_labels(name, path, annotator))


@artifacts_app.command("list")
def list_command(
    run: Annotated[str | None, typer.Option(metavar="RUN", help="Only those of this run.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only those of this kind, such as policy.")] = None,
) -> None:
    """List the stored artifacts: digest, kind, size, and the runs that have them.

    [bold]Example:[/bold] posttrain artifacts list --kind policy
    """
    from flows.cli.artifacts import list_artifacts

    _carry_out(lambda: list_artifacts(run, kind))


@artifacts_app.command("verify")
def verify_command(
    digest: Annotated[str | None, typer.Argument(help="The first characters of a digest; all artifacts if left out.")] = None,
) -> None:
    """Read every byte again and compare it with its digest. Exit code 1 if something is damaged.

    [bold]Example:[/bold] posttrain artifacts verify 3fa9c1
    """
    from flows.cli.artifacts import verify_artifacts

    _carry_out(lambda: verify_artifacts(digest))


@artifacts_app.command("gc")
def gc_command(
    keep: Annotated[int | None, typer.Option(min=0, metavar="N", help="Also forget all but the last N runs of each recipe.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what no run has any more: artifacts, checkpoints, abandoned files. Never anything that a kept run still needs.

    [bold]Example:[/bold] posttrain artifacts gc --keep 3 --dry-run
    """
    from flows.cli.artifacts import collect

    _carry_out(lambda: collect(keep, dry_run))


@artifacts_app.command("path")
def path_command(
    name: Annotated[str, typer.Argument(help="RUN/LABEL, LABEL of the latest run, or the first characters of a digest.")],
) -> None:
    """Print the folder of an artifact, verified, for other programs to read.

    [bold]Example:[/bold] ls $(posttrain artifacts path quickstart/sft)
    """
    from flows.cli.artifacts import artifact_path

    _carry_out(lambda: artifact_path(name))
