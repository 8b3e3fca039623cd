"""What curation did, for programs (``report.json``), for people (``report.html``) and for whoever gets the data (``card.md``).

Rows are hostile text: the page escapes all of it, holds no script, and its policy lets nothing in it load anything.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.blocks.tally import SAMPLES, BlockTally, Sample
from data.configs import CurateConfig, SourceConfig
from data.files import sha256_of
from data.markdown import escaped_table, inline
from data.records import Demonstration, Document, Preference, Record
from data.screening import SourceTally
from data.splits import Candidate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from data.packing import Group

_TEMPLATE = "curation_report.html.jinja"
_LARGEST_PAGE = 900_000  # bytes; tracking takes files of up to a MiB
_SHOWN_TEXT = (1_000, 400, 150, 40)  # characters of a sample; the first with which the page is not too large
_PREVIEW_TOKENS = 768
_BARS = 24
_PREVIEWED = ("demonstrations", "preferences", "documents")


@dataclass(frozen=True)
class BlockReport:
    """One block of the recipe and what it did."""

    label: str
    settings: Mapping[str, Any]
    tally: BlockTally


@dataclass(frozen=True)
class Curated:
    """The outcome of curation. ``record`` and ``text`` read a candidate of a table back."""

    config: CurateConfig
    seed: int
    tokenizer: "Tokenizer"
    sources: Sequence[SourceTally]
    blocks: Sequence[BlockReport]
    tables: Mapping[str, Sequence[Candidate]]
    record: Callable[[str, Candidate], Record]
    text: Callable[[Candidate], str]


def write_report(folder: Path, curated: Curated) -> None:
    """Write ``report.json``, ``report.html`` and ``card.md``."""
    summary = summarised(curated)
    (folder / "report.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(curated, summary), encoding="utf-8", errors="backslashreplace")
    (folder / "card.md").write_text(card(curated, summary), encoding="utf-8", errors="backslashreplace")


def summarised(curated: Curated) -> dict[str, Any]:
    """The counts, by table, source and block; of a recipe without blocks nothing is said of blocks."""
    summary: dict[str, Any] = {
        "tables": {table: lengths(candidates) for table, candidates in curated.tables.items()},
        "sources": [
            {"source": tally.name, "read": tally.read, "bad": tally.bad, "set_aside": dict(sorted(tally.reasons.items()))}
            for tally in curated.sources
        ],
    }
    if not curated.blocks:
        return summary
    for entry, tally in zip(summary["sources"], curated.sources, strict=True):
        entry["rejected_by_blocks"] = dict(tally.blocked)
    summary["blocks"] = [
        {
            "block": block.label,
            "rows": block.tally.rows,
            "kept": block.tally.kept,
            "edited": block.tally.edited,
            "rejected": dict(sorted(block.tally.reasons.items())),
            **({"labels": dict(block.tally.labels.most_common())} if block.tally.labels else {}),
        }
        for block in curated.blocks
    ]
    return summary


def lengths(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Rows of a table with the lengths that memory and time depend on."""
    prompts = [candidate.prompt_tokens for candidate in candidates]
    completions = [candidate.completion_tokens for candidate in candidates]
    return {
        "rows": len(candidates),
        "prompt_tokens_mean": round(sum(prompts) / len(prompts), 1),
        "prompt_tokens_max": max(prompts),
        "completion_tokens_mean": round(sum(completions) / len(completions), 1),
        "completion_tokens_max": max(completions),
    }


# The page


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: what it counts, how many, and its height as a share of the highest."""

    name: str
    count: int
    height: float


@dataclass(frozen=True)
class Piece:
    """One token of the preview, and whether it is trained on."""

    text: str
    trained: bool


def page(curated: Curated, summary: Mapping[str, Any]) -> str:
    """The report as one HTML page without script and without anything from elsewhere."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.get_template(_TEMPLATE)
    table = next((name for name in _PREVIEWED if curated.tables.get(name)), "")
    content = {
        "summary": summary,
        "seed": curated.seed,
        "lengths": [bars for name, rows in curated.tables.items() for bars in _length_bars(name, rows)],
        "labels": [(block.label, _label_bars(block.tally.labels)) for block in curated.blocks if block.tally.labels],
        "previewed": table,
        "preview": _preview(curated, table) if table else [],
        "blocks": curated.blocks,
        "kept": _kept_samples(curated),
        "set_aside": sorted(sample for tally in curated.sources for sample in tally.samples)[:SAMPLES],
    }
    for longest in _SHOWN_TEXT:
        text = template.render(**content, longest=longest)
        if len(text.encode("utf-8", "replace")) <= _LARGEST_PAGE:
            break
    return text


def bars_of(values: Sequence[int]) -> list[Bar]:
    """A histogram of whole numbers from 0 in at most 24 bars of equal width. By hand: [0, 1, 1, 3] give bars of 1, 2, 0 and 1."""
    width = max(values) // _BARS + 1
    counts = Counter(value // width for value in values)
    highest = max(counts.values())
    names = [str(n * width) if width == 1 else f"{n * width} to {(n + 1) * width - 1}" for n in range(max(values) // width + 1)]
    return [Bar(name, counts[n], counts[n] / highest) for n, name in enumerate(names)]


def _length_bars(table: str, rows: Sequence[Candidate]) -> list[tuple[str, list[Bar]]]:
    parts = {"prompt": [row.prompt_tokens for row in rows], "completion": [row.completion_tokens for row in rows]}
    return [(f"{table}: {part}, tokens", bars_of(values)) for part, values in parts.items() if any(values)]


def _label_bars(labels: Counter[str]) -> list[Bar]:
    """The most frequent labels, and one bar for all others."""
    named = labels.most_common(_BARS - 1)
    rest = labels.total() - sum(count for _, count in named)
    counts = [*named, ("others", rest)] if rest else named
    return [Bar(name, count, count / max(count for _, count in counts)) for name, count in counts]


def _kept_samples(curated: Curated) -> list[Sample]:
    """Some rows of all tables, each table as large a part as it is of all rows."""
    draw = random.Random(f"{curated.seed}:kept")
    rows = [(table, len(candidates)) for table, candidates in curated.tables.items()]
    chosen = sorted(draw.sample(range(total), min(SAMPLES, total))) if (total := sum(n for _, n in rows)) else []
    found, start = [], 0
    for table, n in rows:
        candidates = [curated.tables[table][place - start] for place in chosen if start <= place < start + n]
        found += [Sample(0.0, c.file, c.line, curated.text(c), detail=table) for c in candidates]
        start += n
    return found


def _preview(curated: Curated, table: str) -> list[list[Piece]]:
    """The first rows of a table as a trainer packs them: one list of tokens a group."""
    from data.packing import pack, split_by_tokens

    groups = (_group(curated.tokenizer, curated.record(table, candidate)) for candidate in curated.tables[table])
    packed = pack(next(split_by_tokens(groups, _PREVIEW_TOKENS)))
    trained = set(packed.own_S.tolist())
    ids: list[int] = packed.input_ids_N.tolist()
    starts: list[int] = packed.group_starts_K.tolist()
    pieces = [Piece(_token_text(curated.tokenizer, token), place in trained) for place, token in enumerate(ids[: 2 * _PREVIEW_TOKENS])]
    return [pieces[start:end] for start, end in itertools.pairwise(starts) if start < len(pieces)]


def _group(tokenizer: "Tokenizer", record: Record) -> "Group":
    from data.groups import demonstration_group, document_group, pair_group

    if isinstance(record, Demonstration):
        return demonstration_group(tokenizer, record.messages)
    if isinstance(record, Preference):
        return pair_group(tokenizer, record)
    assert isinstance(record, Document)
    return document_group(tokenizer, record.text)


def _token_text(tokenizer: "Tokenizer", token: int) -> str:
    """What a token stands for; of a part of a character the tokenizer's own name for it."""
    name = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token]))
    if not text or "\ufffd" in text:
        return name
    if name.startswith("\u2581") and not text.startswith(" "):
        text = f" {text}"
    return text.replace("\n", "\u23ce").replace("\t", "\u21e5")


# The card


def card(curated: Curated, summary: Mapping[str, Any]) -> str:
    """The data card: a YAML head as the Hugging Face hub reads it, then sources, blocks and tables."""
    config = curated.config
    licences = sorted({source.license or "not stated" for source in config.sources})
    head = {
        "license": "other" if len(licences) != 1 or licences == ["not stated"] else licences[0],
        "license_name": ", ".join(licences),
        "tags": ["posttrain"],
        "source_datasets": [source.place for source in config.sources],
        "configs": [{"config_name": table, "data_files": f"{table}.parquet"} for table in curated.tables],
    }
    sources = [_source_row(source, tally) for source, tally in zip(config.sources, curated.sources, strict=True)]
    tables = [[table, *(str(value) for value in values.values())] for table, values in summary["tables"].items()]
    parts = [
        f"---\n{_yaml(head)}---",
        f"# Data card\n\nMade with seed {curated.seed}. Held-out tables share no prompt with training tables.",
        "## Sources\n\n" + escaped_table(["source", "role", "licence", "rows read", "unusable", "rejected by blocks", "weight"], sources),
        "### Digests (SHA-256)\n\n" + "\n".join(line for source in config.sources for line in _digests(source)),
        "## Blocks\n\n" + ("\n\n".join(map(_block_text, curated.blocks)) or "None."),
        "## Tables\n\n" + escaped_table(["table", "rows", "prompt tokens, mean", "max", "completion tokens, mean", "max"], tables),
    ]
    return "\n\n".join(parts) + "\n"


def _yaml(head: Mapping[str, Any]) -> str:
    """YAML that is no HTML, for readers that take the head for a part of the text."""
    import yaml

    text = yaml.safe_dump(dict(head), sort_keys=False)
    return text if "<" not in text else yaml.safe_dump(dict(head), sort_keys=False, default_style='"').replace("<", "\\x3C")


def _source_row(source: SourceConfig, tally: SourceTally) -> list[str]:
    counts = (tally.read, tally.bad, tally.blocked.total())
    return [source.place, source.role, source.license or "not stated", *map(str, counts), f"{source.weight:g}"]


def _digests(source: SourceConfig) -> list[str]:
    if source.kind == "file":
        return [f"- {inline(path.name)}: {sha256_of(path)}" for path in source.paths()]
    pinned = f"revision {source.revision or 'not pinned'}" if source.kind == "hub" else f"made by the task with {json.dumps(source.task)}"
    return [f"- {inline(source.place)}: {inline(pinned)}"]


def _block_text(block: BlockReport) -> str:
    tally = block.tally
    rejected = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.most_common()) or "none"
    counts = f"{tally.rows} rows, {tally.edited} edited, {tally.kept} kept; rejected: {rejected}"
    settings = json.dumps(dict(block.settings), indent=2).replace("<", "\\u003c")
    return f"### {inline(block.label)}\n\n{inline(counts)}\n\n```json\n{settings}\n```"
