"""`posttrain compare`: the policies of one run or of several on one page, judged anew from their evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.measures import FILE as SUITE_FILE
from data.measures import Suite, read_suite
from flows.cli.comparison import as_table
from flows.cli.policies import store
from flows.cli.terminal import out
from models.comparison import Findings, compared, read_json
from models.configs.evaluation import ComparisonConfig
from models.report import Judged, page
from tasks import registry
from tasks.registry import RunRecord
from tasks.report import document_of, evaluations_of, facts_of, judged_in, write_page


@dataclass(frozen=True)
class Entry:
    """A policy of a run, with its evaluation and what that was made with: digests by the name of the input, and settings."""

    run: str
    name: str
    policy: str
    evaluation: Path
    inputs: Mapping[str, Any]
    config: Mapping[str, Any]


def compare(names: Sequence[str], policies: Sequence[str], target: Path | None) -> int:
    """Write the page and print the table.

    Raises:
        ValueError: a run is not there or has evaluated nothing, or a policy is not in any of them.
    """
    with registry.in_use():
        records = list({record.name: record for record in map(registry.find, names)}.values())
        every = titled([entry for record in records for entry in entries_of(record)])
        config, seed = _settings_of(records[0])
        config = config.model_copy(update={"baseline": _baseline(config.baseline, every, records[0].name)})
        chosen = _chosen(every, policies, config.baseline)
        content = _content(chosen, records, config, seed)
        judged = [Judged(title, entry.policy, entry.run) for title, entry in chosen.items()]
        text = page(content, judged, [facts_of(record) for record in records])
    place = (target or registry.report_path("+".join(record.name for record in records))).expanduser().resolve()
    write_page(place, text)
    out.print(as_table(content))
    out.print(f"\nThe whole report: {place}", soft_wrap=True, markup=False)
    return 0


def entries_of(record: RunRecord) -> Iterator[Entry]:
    """The evaluated policies of a run.

    Raises:
        ValueError: there are none.
    """
    digests = {one.name: one.digest for one in judged_in(record)}
    if not digests:
        raise ValueError(f"The run {record.name} has evaluated no policy: name runs whose flow ends in a comparison.")
    for name, stage in evaluations_of(record).items():
        if name in digests and stage.artifact is not None:
            document = document_of(stage)
            folder = store().path(stage.artifact)
            yield Entry(record.name, name, digests[name], folder, document.get("inputs", {}), document.get("config", {}))


def titled(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The entries by their names in the table: what two runs share once, and RUN/NAME where a name means different things."""
    first: dict[tuple[str, Path], str] = {}
    for entry in entries:
        first.setdefault((entry.policy, entry.evaluation), entry.run)
    kept = [entry for entry in entries if first[entry.policy, entry.evaluation] == entry.run]
    names = [entry.name for entry in kept]
    return {entry.name if names.count(entry.name) == 1 else f"{entry.run}/{entry.name}": entry for entry in kept}


def _baseline(name: str, every: Mapping[str, Entry], run: str) -> str:
    """The baseline of the first run, under its name in this table."""
    return name if name in every else f"{run}/{name}"


def _chosen(every: dict[str, Entry], policies: Sequence[str], baseline: str) -> dict[str, Entry]:
    unknown = [name for name in policies if not any(name in (title, entry.name) for title, entry in every.items())]
    if unknown:
        raise ValueError(f"There is no policy {', '.join(unknown)} in these runs; there is {', '.join(every)}.")
    wanted = {title: entry for title, entry in every.items() if title in policies or entry.name in policies}
    return {title: entry for title, entry in every.items() if title in wanted or title == baseline} if policies else every


def _settings_of(record: RunRecord) -> tuple[ComparisonConfig, int]:
    """How the first run compared its policies, so that one run alone gives the numbers that it had."""
    for stage in record.stages.values():
        document = document_of(stage)
        if document.get("stage") == "comparison":
            return ComparisonConfig.model_validate(document["config"]), document.get("seed") or 0
    raise ValueError(f"The run {record.name} has no comparison, whose baseline would be that of this one: name first a run that has.")


def _content(chosen: Mapping[str, Entry], records: Sequence[RunRecord], config: ComparisonConfig, seed: int) -> dict[str, Any]:
    answers = {title: read_json(entry.evaluation / "evaluation.json")["rows"] for title, entry in chosen.items()}
    unpaired, notes = incomparable(chosen, config.baseline)
    return compared(config, answers, _findings(chosen, records), seed, unpaired, notes)


def incomparable(chosen: Mapping[str, Entry], baseline: str) -> tuple[dict[str, list[str]], list[str]]:
    """By policy, the quantities that mean something else than the baseline's, and what to say of them."""
    unpaired: dict[str, list[str]] = {}
    notes = []
    first = chosen[baseline]
    for title, entry in chosen.items():
        differ = {name for name in ("reward", "held_out_reward", "reference") if _digest(entry, name) != _digest(first, name)}
        judges = {name: one.config.get("judge") for name, one in (("own", entry), ("first", first))}
        lost = [name for name in ("reward", "held_out_reward") if name in differ]
        if judges["own"] != judges["first"] or (judges["own"] == "reward_model" and "reward" in differ):
            lost.append("win_rate")
        if "reference" in differ:
            lost.append("kl_nats")
        if lost:
            unpaired[title] = lost
            other = ", ".join(sorted(differ)) or "judge"
            notes.append(f"{title} and {baseline} were evaluated with another {other}: not comparable in {' and '.join(lost)}.")
    return unpaired, notes


def _digest(entry: Entry, name: str) -> str | None:
    value = entry.inputs.get(name)
    return value.get("digest") if isinstance(value, Mapping) else None


def _findings(chosen: Mapping[str, Entry], records: Sequence[RunRecord]) -> Findings:
    """What suites and other stages of the runs found of the chosen policies, by their names in this table."""
    suites: dict[str, dict[str, Suite]] = {}
    behaviour: dict[str, Any] = {}
    curves: dict[str, Any] = {}
    reward: dict[str, Any] | None = None
    titles = {(entry.run, entry.name): title for title, entry in chosen.items()}
    for record in records:
        for label, stage in record.stages.items():
            if stage.artifact is None or stage.artifact.kind != "report":
                continue
            folder = store().path(stage.artifact)
            part = label.partition("[")[2].removesuffix("]")
            policy, _, suite = part.rpartition("/")  # suites are called KIND[POLICY/SUITE]
            title = titles.get((record.name, policy)) or titles.get((record.name, part))
            if (folder / SUITE_FILE).is_file() and title is not None:
                found = read_suite(folder)
                suites.setdefault(title, {})[suite if policy else found.suite] = found
            elif (folder / "behaviour.json").is_file():
                known = read_json(folder / "behaviour.json")["policies"].items()
                behaviour |= {titles[record.name, name]: one for name, one in known if (record.name, name) in titles}
            elif (folder / "overoptimisation.json").is_file() and title is not None:
                curves[title] = read_json(folder / "overoptimisation.json")
            elif (folder / "reward_evaluation.json").is_file() and reward is None:
                reward = read_json(folder / "reward_evaluation.json")
    return Findings(suites, {"policies": behaviour} if behaviour else None, curves, reward)
