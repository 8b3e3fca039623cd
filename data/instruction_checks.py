"""Instructions whose following a rule can check: the 25 of IFEval, by the names under which its rows are published.

Each check reads the whole answer. Keywords are texts here, not patterns, and no check takes more than linear time: rows and answers are
hostile. Where the published code reads sentences, words or languages with models that have to be downloaded (punkt, langdetect), these
are a rule below and the packaged language identifier, so counts of sentences can differ by one on abbreviations.

Source: Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, table 1.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from data.blocks.language import UNKNOWN, identify

Kind = Literal["text", "texts", "letter", "count", "relation", "language"]
RELATIONS = ("less than", "at least")
FIXED_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+(?:[-'\u2019.&]\w+)*")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'\u201d\u2019)\]*]*\s+(?=[^a-z\s])|\n\s*\n|[\u3002\uff01\uff1f\u0964]+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|etc|No|Fig|[A-Z]|e\.g|i\.e|a\.m|p\.m)\.$")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_BULLET = re.compile(r"\s*(?:\*[^*]|-)")
_ITALIC, _BOLD = re.compile(r"\*([^\n*]*)\*"), re.compile(r"\*\*([^\n*]*)\*\*")
_FIRST_WORD_END = re.compile(r"[.,?!'\"]")


@dataclass(frozen=True, slots=True)
class Check:
    """How an instruction is checked: ``follows(answer, **parameters)``, and what each parameter must be."""

    follows: Callable[..., bool]
    parameters: Mapping[str, Kind]


def _compared(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


# Keywords


def _has_keywords(answer: str, keywords: list[str]) -> bool:
    return all(keyword.lower() in answer.lower() for keyword in keywords)


def _keyword_frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compared(answer.lower().count(keyword.lower()), relation, frequency)


def _lacks_words(answer: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(answer.lower().count(letter.lower()), let_relation, let_frequency)


# Language and case


def _is_in(answer: str, language: str) -> bool:
    """An answer without a letter is in no language and is let pass, as published."""
    return identify(answer)[0] in (language, UNKNOWN)


def _english_capital(answer: str) -> bool:
    # The identifier has read few texts in capitals: it is shown the same in small letters.
    return answer.isupper() and _is_in(answer.lower(), "en")


def _english_lowercase(answer: str) -> bool:
    return answer.islower() and _is_in(answer, "en")


def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compared(sum(word.isupper() for word in _TOKEN.findall(answer)), capital_relation, capital_frequency)


# Length


def sentences(text: str) -> int:
    """Sentences of a text: ended by a mark before white space and no small letter, or by an empty line; not by an abbreviation.

    By hand: "Dr. Who is 3.5 m tall. Really?\\n\\nYes" is 3.
    """
    count, start = 0, 0
    for end in _SENTENCE_END.finditer(text):
        if _ABBREVIATION.search(text[max(start, end.end() - 10) : end.end()].rstrip()):
            continue
        count, start = count + bool(_WORD.search(text, start, end.end())), end.end()
    return count + bool(_WORD.search(text, start))


def _number_sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _compared(sentences(answer), relation, num_sentences)


def _number_words(answer: str, num_words: int, relation: str) -> bool:
    return _compared(len(_WORD.findall(answer)), relation, num_words)


def _number_paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Paragraphs are divided by ***; an empty one between two dividers is a fault, at the ends it is none."""
    parts = _DIVIDER.split(answer)
    return all(part.strip() for part in parts[1:-1]) and sum(bool(part.strip()) for part in parts) == num_paragraphs


def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are divided by an empty line. The word ends at a mark; quotation marks before it do not count."""
    parts = [part.split() for part in answer.split("\n\n") if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    word = parts[nth_paragraph - 1][0].lstrip("'\"").lower()
    return _FIRST_WORD_END.split(word)[0] == first_word.lower()


# Content and format


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return sum(map(_brackets, answer.split("\n"))) >= num_placeholders


def _brackets(line: str) -> int:
    """How often [...] stands in a line: each opening bracket up to the next closing one."""
    count, position = 0, line.find("[")
    while position >= 0 and (end := line.find("]", position)) >= 0:
        count, position = count + 1, line.find("[", end)
    return count


def _postscript(answer: str, postscript_marker: str) -> bool:
    """The published markers P.S. and P.P.S may have a space after their full stops."""
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return bool(re.search(patterns.get(postscript_marker, re.escape(postscript_marker.lower())), answer.lower()))


def _bullets(answer: str, num_bullets: int) -> bool:
    return sum(bool(_BULLET.match(line)) for line in answer.split("\n")) == num_bullets


def _fixed_answer(answer: str) -> bool:
    return any(fixed in answer for fixed in FIXED_ANSWERS)


def _highlights(answer: str, num_highlights: int) -> bool:
    marked = [text for pattern in (_ITALIC, _BOLD) for text in pattern.findall(answer)]
    return sum(bool(text.strip()) for text in marked) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", answer)) >= num_sections


def _is_json(answer: str) -> bool:
    text = answer.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(answer: str) -> bool:
    return any(map(_titled, answer.split("\n")))


def _titled(line: str) -> bool:
    """True where something stands between << and the last >> of the line."""
    start, end = line.find("<<"), line.rfind(">>")
    return start >= 0 and bool(line[start:end].lstrip("<").rstrip(">").strip())


# Combinations, start and end


def _two_responses(answer: str) -> bool:
    """Two different answers divided by six asterisks."""
    parts = [part.strip() for part in answer.split("******")]
    found = [part for part in parts if part]
    return all(parts[1:-1]) and len(found) == 2 and found[0] != found[1]


def _repeats_prompt(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quoted(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _no_comma(answer: str) -> bool:
    return "," not in answer


CHECKS: dict[str, Check] = {
    "keywords:existence": Check(_has_keywords, {"keywords": "texts"}),
    "keywords:frequency": Check(_keyword_frequency, {"keyword": "text", "frequency": "count", "relation": "relation"}),
    "keywords:forbidden_words": Check(_lacks_words, {"forbidden_words": "texts"}),
    "keywords:letter_frequency": Check(_letter_frequency, {"letter": "letter", "let_frequency": "count", "let_relation": "relation"}),
    "language:response_language": Check(_is_in, {"language": "language"}),
    "length_constraints:number_sentences": Check(_number_sentences, {"num_sentences": "count", "relation": "relation"}),
    "length_constraints:number_paragraphs": Check(_number_paragraphs, {"num_paragraphs": "count"}),
    "length_constraints:number_words": Check(_number_words, {"num_words": "count", "relation": "relation"}),
    "length_constraints:nth_paragraph_first_word": Check(
        _nth_paragraph, {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"}
    ),
    "detectable_content:number_placeholders": Check(_placeholders, {"num_placeholders": "count"}),
    "detectable_content:postscript": Check(_postscript, {"postscript_marker": "text"}),
    "detectable_format:number_bullet_lists": Check(_bullets, {"num_bullets": "count"}),
    "detectable_format:constrained_response": Check(_fixed_answer, {}),
    "detectable_format:number_highlighted_sections": Check(_highlights, {"num_highlights": "count"}),
    "detectable_format:multiple_sections": Check(_sections, {"section_spliter": "text", "num_sections": "count"}),
    "detectable_format:json_format": Check(_is_json, {}),
    "detectable_format:title": Check(_title, {}),
    "combination:two_responses": Check(_two_responses, {}),
    "combination:repeat_prompt": Check(_repeats_prompt, {"prompt_to_repeat": "text"}),
    "startend:end_checker": Check(_ends_with, {"end_phrase": "text"}),
    "startend:quotation": Check(_quoted, {}),
    "punctuation:no_comma": Check(_no_comma, {}),
    "change_case:english_capital": Check(_english_capital, {}),
    "change_case:english_lowercase": Check(_english_lowercase, {}),
    "change_case:capital_word_frequency": Check(_capital_words, {"capital_frequency": "count", "capital_relation": "relation"}),
}
