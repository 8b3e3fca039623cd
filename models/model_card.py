"""The model card of a registered policy: what it is, why it was taken, what it was made of, what is not known of it.

Names, notes and messages are hostile text; the data card is Markdown that curation has escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.intervals import paired_bootstrap
from data.markdown import escaped_table, inline
from models.promotion import Decision, Evidence, Quantity
from models.seeds import derive_seed

# Licences of the models that travel in packages; those of others are where the model comes from.
PACKAGED_LICENSES = {"smollm2-135m-instruct": "Apache-2.0"}

_DRAWS = 2_000
_HEADING = re.compile(r"^(#+ )", re.MULTILINE)
_SUITES = {"safety": "over-refusal and compliance", "toxicity": "toxicity", "win_rate": "win rate", "multiple_choice": "truthfulness"}


@dataclass(frozen=True)
class Made:
    """One stage on the way to the model: what it made, and its settings, flat."""

    label: str
    run: str
    stage: str
    key: str
    digest: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CardContent:
    """All that a card is made of. ``base``: what the stage base_model said. ``data_cards``: card.md of curated data, by digest."""

    name: str
    candidate: Evidence
    champion: Evidence
    opponent: str
    decision: Decision
    decision_id: str
    made: Sequence[Made] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    data_cards: Mapping[str, str] = field(default_factory=dict)


def card(content: CardContent) -> str:
    """The card as Markdown."""
    parts = [
        _title(content),
        f"## Decision\n\n{decision_table(content.decision)}",
        f"## Evaluation\n\n{evaluation_table(content)}",
        f"## Limits\n\n{_bullets(limits(content))}",
        f"## Data\n\n{_data(content)}",
        f"## Lineage\n\n{_lineage(content.made)}",
        f"## Method and settings\n\n{_method(content)}",
        f"## Licence\n\n{_bullets(licences(content))}",
    ]
    return "\n\n".join(parts) + "\n"


def _title(content: CardContent) -> str:
    lines = [
        f"Policy {inline(content.candidate.name)}, digest {inline(content.candidate.digest)}.",
        f"Registered because of decision {inline(content.decision_id)}, compared with {inline(content.opponent)}.",
    ]
    return f"# Model card: {inline(content.name)}\n\n" + "\n".join(lines)


# Decision and evaluation


def decision_table(decision: Decision) -> str:
    """What was asked and how it came out, one line a check."""
    return escaped_table(["check", "result", "words"], [[check.check, check.status, check.words] for check in decision.checks])


def evaluation_table(content: CardContent) -> str:
    """Every quantity measured of the policy, with 95 % bootstrap intervals over prompts, beside what it was compared with."""
    rows = [_row(name, one, content.champion.quantities.get(name)) for name, one in content.candidate.quantities.items() if one.values]
    note = "Brackets are 95 % bootstrap intervals over prompts or items; the difference is paired, own minus other."
    return escaped_table(["quantity", "this policy", "compared with", "difference", "items"], rows) + f"\n\n{note}"


def _row(name: str, own: Quantity, other: Quantity | None) -> list[str]:
    paired = other is not None and other.values.keys() == own.values.keys()
    beside = [other.values[item] for item in own.values] if other is not None and paired else None
    difference = _interval(name, list(own.values.values()), beside) if beside else "-"
    return [name, _interval(name, list(own.values.values())), _interval(name, beside) if beside else "-", difference, str(len(own.values))]


def _interval(name: str, values: Sequence[float], other: Sequence[float] | None = None) -> str:
    try:
        found = paired_bootstrap(values, other, seed=derive_seed("card", name), n=_DRAWS)
    except ValueError:
        return "not finite"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


# What is not known


def limits(content: CardContent) -> list[str]:
    """What a reader must not take from the numbers: findings, and what was not measured."""
    candidate = content.candidate
    found = [f"{one.severity}, {one.check}: {one.message}" for one in candidate.findings or []]
    found += [f"{check.check}: {check.words}" for check in content.decision.checks if check.status == "not asked"]
    kinds = {one.kind for one in candidate.quantities.values()}
    found += [f"not measured: {words}" for kind, words in _SUITES.items() if kind not in kinds]
    if note := content.base.get("note"):
        found.append(f"weights of the base model: {note}")
    answered = len(candidate.quantities["completion_tokens"].values) if "completion_tokens" in candidate.quantities else 0
    return [*found, f"measured on {answered} held-out prompts of one data set: it says little about prompts of another kind"]


# Where it comes from


def _data(content: CardContent) -> str:
    if not content.data_cards:
        return "No curated data is known of this policy."
    return "\n\n".join(f"Digest {inline(digest)}\n\n{_demoted(text)}" for digest, text in content.data_cards.items())


def _demoted(text: str) -> str:
    """A data card without its YAML head, its headings two levels down."""
    body = text.split("\n---\n", 1)[-1].strip()
    return _HEADING.sub(r"##\1", body)


def _lineage(made: Sequence[Made]) -> str:
    names = {one.digest: one.label for one in made}
    rows = [
        [
            one.label,
            one.run,
            one.key,
            one.digest,
            ", ".join(f"{name} = {names.get(digest, 'unknown')} {digest[:12]}" for name, digest in one.inputs.items()) or "none",
        ]
        for one in made
    ]
    return escaped_table(["stage", "run", "key", "digest", "made of"], rows) if rows else "Nothing is known of how it was made."


def _method(content: CardContent) -> str:
    """Every setting of the stages that made policies on the way, the last one last."""
    blocks = []
    for one in content.made:
        if one.settings:
            settings = escaped_table(["setting", "value"], [[name, str(value)] for name, value in one.settings.items()])
            blocks.append(f"### {inline(one.label)}\n\n{settings}")
    return "\n\n".join(blocks) or "Nothing is known of how it was made."


def licences(content: CardContent) -> list[str]:
    """Of the base model, and of each source of data, as far as they are stated."""
    name, kind = str(content.base.get("model", "")), str(content.base.get("kind", ""))
    base = PACKAGED_LICENSES.get(name) if kind == "packaged" else content.base.get("license")
    if kind == "scratch":
        base = "none needed: it began with random weights"
    stated = [f"base model {name or 'unknown'}: {base or 'not stated; see where the model comes from'}"]
    for text in content.data_cards.values():
        named = re.search(r"^license_name: (.*)$", text, re.MULTILINE)
        stated.append(f"data: {named.group(1) if named else 'not stated'}")
    return stated


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {inline(line)}" for line in lines)
