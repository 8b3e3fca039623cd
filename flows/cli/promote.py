"""`posttrain promote`, `rollback` and `champions`: who is in use, why, and who was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from flows.cli.session import prefect_session
from flows.cli.terminal import complain, err, out, plain
from flows.faults import describe
from flows.recipes import parse_yaml
from models.configs.promotion import GateConfig
from tasks.home import configure_environment

if TYPE_CHECKING:
    from flows.promotion import Outcome, PromotionConfig

REFUSED = 1
COLOURS = {"passed": "green", "failed": "red", "missing": "red", "not asked": "dim"}


def promote(candidate: str, name: str, gate: Path | None, dry_run: bool, verbose: bool) -> int:
    """Run the flow of promotion, and show its decision; 1 if the candidate is refused or nothing could be decided.

    Raises:
        ValueError: the gate, the run or the policy cannot be used.
    """
    wanted = _gate(gate)
    with prefect_session() as wait_for_prefect:
        from flows.promotion import PromotionConfig
        from tasks.champions import Registry

        Registry(name)  # what is wrong with the name need not wait for a server
        with err.status("Starting Prefect"):
            wait_for_prefect()
        return _run(PromotionConfig(candidate=candidate, name=name, gate=wanted, dry_run=dry_run), verbose)


def _gate(path: Path | None) -> GateConfig:
    if path is None:
        return GateConfig()
    if not path.is_file():
        raise ValueError(f"There is no gate file {path}.")
    try:
        return GateConfig.model_validate(parse_yaml(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"The gate in {path} cannot be used:\n{describe(error, GateConfig)}") from error


def _run(config: PromotionConfig, verbose: bool) -> int:
    from flows.cli.progress import showing
    from flows.promotion import promotion
    from tasks import registry
    from tasks.champions import Busy, Overtaken
    from tasks.recorder import Refused, Unreachable
    from tasks.store import ArtifactInvalid

    try:
        with registry.recording("promotion", config) as live, showing(verbose):
            outcome = promotion.with_options(flow_run_name=live.name)(config)
    except (Unreachable, Refused) as error:
        complain(f"MLflow cannot be used, so nothing was decided or the move is unsure; see `posttrain champions`, then repeat: {error}")
        return REFUSED
    except (Busy, Overtaken, ArtifactInvalid) as error:
        complain(str(error))
        return REFUSED
    assert outcome is not None
    return _show(config, outcome)


def _show(config: PromotionConfig, outcome: Outcome) -> int:
    """The table of reasons, and what became of the candidate."""
    record = outcome.record
    if outcome.note == "already champion":
        out.print(plain(record.reasons[0]), soft_wrap=True, markup=False)
        return 0
    out.print(plain(f"{record.candidate} against {record.opponent}"), soft_wrap=True, markup=False)
    out.print(_checks(record.checks))
    verdict = "would be accepted" if config.dry_run and record.accepted else "accepted" if record.accepted else "refused"
    if outcome.version:
        verdict = f"accepted: version {outcome.version} of {config.name} is champion"
    where = "nothing was written down" if config.dry_run else f"decision {record.id}"
    out.print(plain(f"\n{record.candidate} {verdict} ({where})."), soft_wrap=True, markup=False)
    return 0 if record.accepted else REFUSED


def _checks(checks: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "result", "candidate", "champion", "words"):
        table.add_column(column, justify="right" if column in ("candidate", "champion") else "left", overflow="fold")
    for check in checks:
        numbers = ["-" if check[side] is None else f"{check[side]:.3f}" for side in ("candidate", "champion")]
        status = Text(check["status"], COLOURS[check["status"]])
        table.add_row(Text(plain(check["check"])), status, *numbers, Text(plain(check["words"])))
    return table


def rollback(name: str, to: int) -> int:
    """Give the alias back; 1 if the version to go back to is damaged or nothing could be moved.

    Raises:
        ValueError: there is no champion, none before it, or no such version.
    """
    configure_environment()
    from tasks.champions import Busy, Overtaken, Registry
    from tasks.promotion import roll_back
    from tasks.recorder import Refused, Unreachable
    from tasks.registry import in_use

    try:
        with in_use():
            record, version = roll_back(Registry(name), to)
    except (Unreachable, Refused, Busy, Overtaken) as error:
        complain(f"Not rolled back: {error}")
        return REFUSED
    if not record.accepted:
        complain(f"Version {version.number} of {name} is not whole, so the champion stays: {'; '.join(record.reasons)}")
        return REFUSED
    out.print(plain(f"Version {version.number} of {name} is champion again, verified in full (decision {record.id})."), soft_wrap=True)
    return 0


def champions(name: str | None) -> int:
    """Print every decision, the oldest first, and the present champion of each model."""
    configure_environment()
    from tasks import decisions

    records = decisions.decisions(name)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("decision", "model", "what", "candidate", "outcome", "reason"):
        table.add_column(column, overflow="fold")
    for record in records:
        move = decisions.move_of(record.id)
        outcome = "refused" if not record.accepted else f"version {move.before} -> {move.after}" if move else "not carried out"
        cells = (record.id, record.name, record.action, record.candidate, outcome, "; ".join(record.reasons) or record.opponent)
        table.add_row(*(Text(plain(cell)) for cell in cells))
    out.print(table)
    for model in sorted({record.name for record in records} | ({name} if name else set())):
        out.print(_present(model), soft_wrap=True, markup=False)
    return 0


def _present(model: str) -> str:
    from tasks.champions import Registry
    from tasks.recorder import Refused, Unreachable

    try:
        champion = Registry(model).champion()
    except (Unreachable, Refused) as error:
        return plain(f"{model}: MLflow cannot be asked who is champion: {error}")
    if champion is None:
        return f"{model}: no champion yet"
    return plain(f"{model}: champion is version {champion.number}, {champion.tags.get('policy', '?')}, digest {champion.digest[:12]}")
