"""The blocks of curation by kind. A new block is one line here, and one word in ``BlockKind``.

A block's module has beside its class the class's settings, ``BlockSettings`` of the class's name with ``Settings`` after it. What
settings may have besides fields, and a block besides its call (or ``describe`` and ``decide``), is listed in ``data.blocks.executor``.
"""

import importlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from data.blocks.settings import BlockSettings

BlockKind = Literal[
    "unicode",
    "whitespace",
    "language",
    "gopher",
    "c4",
    "fineweb",
    "pii",
    "profanity",
    "refusals",
    "boilerplate",
    "perplexity",
    "classifier",
    "dsir",
    "exact",
    "bloom",
    "minhash",
    "semantic",
    "decontaminate",
    "replay",
]

# kind: module:class. Modules are imported when a block of the kind is asked for.
BLOCKS: dict[str, str] = {
    "unicode": "data.blocks.clean:Unicode",
    "whitespace": "data.blocks.clean:Whitespace",
    "language": "data.blocks.language:Language",
    "gopher": "data.blocks.heuristics:Gopher",
    "c4": "data.blocks.heuristics:C4",
    "fineweb": "data.blocks.heuristics:FineWeb",
    "pii": "data.blocks.pii:PII",
    "profanity": "data.blocks.safety:Profanity",
    "refusals": "data.blocks.safety:Refusals",
    "boilerplate": "data.blocks.safety:Boilerplate",
    "perplexity": "data.blocks.perplexity:Perplexity",
    "classifier": "data.blocks.classifier:Classifier",
    "dsir": "data.blocks.dsir:DSIR",
    "exact": "data.blocks.exact:Exact",
    "bloom": "data.blocks.bloom:Bloom",
    "minhash": "data.blocks.minhash:MinHash",
    "semantic": "data.blocks.semantic:Semantic",
    "decontaminate": "data.blocks.decontaminate:Decontaminate",
    "replay": "data.blocks.replay:Replay",
}


def place_of(kind: str) -> str:
    """Where the block of a kind is, as module:class. Raises ValueError where there is none."""
    if kind not in BLOCKS:
        raise ValueError(f"there is no block {kind!r}; blocks: {', '.join(BLOCKS) or 'none'}")
    return BLOCKS[kind]


def load(place: str, settings: Mapping[str, Any]) -> tuple[Any, BlockSettings]:
    """The class at module:class and its settings, defaults filled in.

    Raises:
        ValueError: a setting is unknown or out of range; the message names it.
    """
    module, _, name = place.partition(":")
    loaded = importlib.import_module(module)
    model: type[BlockSettings] = getattr(loaded, f"{name}Settings")
    try:
        return getattr(loaded, name), model.model_validate(dict(settings))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}" for fault in error.errors())
        raise ValueError(f"{faults} (settings: {', '.join(model.model_fields) or 'none'})") from error
