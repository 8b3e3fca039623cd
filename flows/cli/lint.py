"""`posttrain lint`: what is wrong with preference pairs, of a run or of a file, before a model learns them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from data.configs import Form, SourceConfig
from data.lint import Lint, lint_folder, lint_pairs
from data.reading import examples_of
from data.records import Preference
from data.sources import BadRow
from flows.cli.policies import resolve, store
from flows.cli.terminal import complain, out, plain
from tasks import registry


def lint(name: str, form: str, as_json: bool, seed: int) -> int:
    """Print the findings of every set that a name means; 1 if there are faults."""
    found = _of_file(Path(name), form, seed) if Path(name).is_file() else _of_artifacts(name, seed)
    for title, result in found.items():
        if as_json:
            out.print_json(result.to_json())
        else:
            _show(title, result)
    return 1 if any(result.faults for result in found.values()) else 0


def _show(title: str, result: Lint) -> None:
    out.print(plain(f"{title}: {result.pairs} pairs, {len(result.findings)} findings"), soft_wrap=True)
    for finding, line in zip(result.findings, result.lines(), strict=True):
        out.print(plain(f"  {'fault' if finding.is_fault else 'note '} {finding.check}: {line.removeprefix('lint: ')}"), soft_wrap=True)
    for line in _measurements(result):
        out.print(plain(f"        {line}"), soft_wrap=True)


def _measurements(result: Lint) -> list[str]:
    lines = []
    if share := result.measured.get("length", {}).get("share"):
        auc = result.measured["length"]["auc"]
        lines.append(f"the longer answer wins {share[0]:.1%} [{share[1]:.1%}, {share[2]:.1%}]; AUC of length {auc:.2f}")
    noise = result.measured.get("noise", {})
    if noise.get("at_most") is not None:
        lines.append(f"wrong labels: at most {noise['at_most']:.0%}, as a model of words predicts the others")
    if noise.get("estimate") is not None:
        mean, low, high = noise["estimate"]
        lines.append(f"wrong labels: {mean:.1%} [{low:.1%}, {high:.1%}], from {noise['labelled_twice']} pairs labelled twice")
    return lines


def _of_artifacts(name: str, seed: int) -> dict[str, Lint]:
    """Every artifact with pairs of a run, held against the test tables of all; or the one artifact or folder of that name."""
    try:
        run = registry.find(name)
    except ValueError:
        named = resolve(name)
        folders = {named.title: named.folder}
    else:
        folders = {f"{run.name}/{label}": store().path(artifact) for label, artifact in run.artifacts().items()}
    holding = {title: folder for title, folder in folders.items() if (folder / "preferences.parquet").is_file()}
    if not holding:
        raise ValueError(f"{name} holds no preferences.parquet: lint looks at pairs; name what curate or collect_preferences has made")
    return {title: lint_folder(folder, [other for other in folders.values() if other != folder], seed) for title, folder in holding.items()}


def _of_file(path: Path, form: str, seed: int) -> dict[str, Lint]:
    """The pairs of a data file, read as curation reads them."""
    if form not in get_args(Form):
        raise ValueError(f"--form {form!r} is not one of {', '.join(get_args(Form))}")
    try:
        source = SourceConfig.model_validate({"kind": "file", "name": str(path), "form": form})
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error
    pairs: list[Preference] = []
    refused: Counter[str] = Counter()
    for row, examples in examples_of(source):
        for example in examples:
            if isinstance(example, BadRow):
                refused[example.reason] += 1
            elif example.chosen is not None and example.rejected is not None:
                name = f"{row.file}:{row.line}"
                pairs.append(Preference(name, str(path), example.prompt, example.chosen, example.rejected, example.margin))
    if refused:
        complain(f"{path}: {refused.total()} rows cannot be used: {dict(refused.most_common())}")
    if not pairs:
        raise ValueError(f"{path} holds no pairs of a chosen and a rejected answer: lint looks at those only")
    return {str(path): lint_pairs(pairs, {}, seed)}
