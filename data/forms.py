"""The ecosystem's row forms, each read into examples: a prompt with what is known of answers to it.

``detect_form`` tells the form from the column names; ``parse`` reads one row, or raises BadRow with the reason it cannot be used.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.configs import Form
from data.records import ROLES, Message, Messages
from data.sources import BadRow

_ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response"), "tool"),
}
_HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_TEXT_KEYS = ("content", "value", "text", "response")
_YES, _NO = {"true", "yes", "1", "1.0", "good", "desirable"}, {"false", "no", "0", "0.0", "-1", "bad", "undesirable"}


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and what a row says of answers to it. ``completion`` is the answer to imitate: the only one, the chosen or the best.

    A plain document is a ``completion`` with no prompt.
    """

    prompt: Messages
    completion: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    margin: float = 0.0
    labelled: str | None = None
    desirable: bool | None = None
    ranked: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    answer: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def answers(self) -> tuple[str, ...]:
        """Every answer text of the example, each once."""
        texts = (self.completion, self.chosen, self.rejected, self.labelled, *self.ranked)
        return tuple(dict.fromkeys(text for text in texts if text is not None))


def mapped(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row under our column names. A column that is mapped is known by its new name only; dots reach into nested values."""
    taken = {name for path in columns.values() for name in (path, path.split(".")[0])}
    row = {name: value for name, value in values.items() if name not in taken}
    for ours, theirs in columns.items():
        if (value := _reach(values, theirs)) is not None:
            row[ours] = value
    return row


def detect_form(columns: Iterable[str], sample: Mapping[str, Any]) -> Form:
    """The form of rows with these (mapped) columns. Raises ValueError that names the columns seen where none fits."""
    seen = set(columns)
    if seen == {"text"}:
        return "text"
    asks = bool(seen & {"prompt", "messages", "conversations", "instruction"})
    if {"chosen", "rejected"} <= seen:
        return "hh" if not asks and isinstance(sample.get("chosen"), str) else "preference"
    if isinstance(sample.get("prompt"), Mapping) or ("completions" in seen and asks):
        return "ranked"
    if "label" in seen and (seen & {"messages", "conversations"} or {"prompt", "completion"} <= seen):
        return "label"
    if seen & {"messages", "conversations"}:
        return "messages"
    if {"instruction", "output"} <= seen:
        return "alpaca"
    if "prompt" in seen:
        return "prompt_completion"
    raise ValueError(
        f"cannot tell the form of rows with the columns {sorted(seen)}. Set columns to map ours to them, such as "
        "{prompt: question, completion: answer}; forms: messages; prompt, completion; prompt, chosen, rejected; prompt, completion, label; "
        "instruction, input, output; chosen, rejected (HH); prompt, completions, ranks; text (alone, or with form=text)"
    )


def parse(row: Mapping[str, Any], form: Form) -> list[Example]:
    """The examples of one mapped row: one, or one a ranked turn for a conversation tree. Raises BadRow where it cannot be used."""
    return list(_PARSERS[form](row))


def _reach(values: Mapping[str, Any], path: str) -> Any:
    if path in values:
        return values[path]
    value: Any = values
    for step in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def _text(value: Any, name: str) -> str:
    """A usable text: not blank, and encodable."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(_text(part.get("text"), name) for part in value)
    if value is None:
        raise BadRow("empty", f"{name} is missing")
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"{name} is {type(value).__name__}, not text")
    if not value.strip():
        raise BadRow("empty", f"{name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow("invalid_utf8", f"{name} holds bytes or escapes that are not UTF-8")
    return value


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("wrong_type", f"{name} is {type(value).__name__}, not a message with role and content")
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role not in _ROLE_NAMES:
        raise BadRow("wrong_type", f"{name} has the role {role!r}; known: {', '.join(_ROLE_NAMES)}")
    text = next((value[key] for key in _TEXT_KEYS if value.get(key) is not None), None)
    return Message(_ROLE_NAMES[role], _text(text, f"{name} ({_ROLE_NAMES[role]})"))


def _messages(value: Any, name: str) -> Messages:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRow("wrong_type", f"{name} is {type(value).__name__}, not a list of messages")
    if not value:
        raise BadRow("empty", f"{name} is empty")
    return tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(value))


def _with_system(row: Mapping[str, Any], messages: Messages) -> Messages:
    system = row.get("system")
    if not system or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", _text(system, "system")), *messages)


def _asked(row: Mapping[str, Any]) -> Messages:
    """The prompt of a row, however it is given; () where it is not."""
    for name in ("messages", "conversations", "prompt"):
        value = row.get(name)
        if value is None:
            continue
        messages = (Message("user", _text(value, name)),) if name == "prompt" and isinstance(value, str) else _messages(value, name)
        return _with_system(row, messages)
    if row.get("instruction") is None:
        return ()
    instruction = _text(row["instruction"], "instruction")
    context = row.get("input") or ""
    asked = f"{instruction}\n\n{_text(context, 'input')}" if context else instruction
    return _with_system(row, (Message("user", asked),))


def _prompt(messages: Messages) -> Messages:
    """The same messages, if an assistant can answer them."""
    if not messages:
        raise BadRow("empty", "there is no prompt")
    if messages[-1].role not in ("user", "tool"):
        raise BadRow("no_user_turn", f"the prompt ends with the {messages[-1].role}'s turn; its roles are {[m.role for m in messages]}")
    return messages


def _through_last_answer(messages: Messages) -> tuple[Messages, str]:
    """A conversation cut after its last assistant turn, which comes apart."""
    last = max((index for index, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise BadRow("no_assistant_turn", f"the roles are {[message.role for message in messages]}")
    return _prompt(messages[:last]), messages[last].content


def _from_messages(row: Mapping[str, Any]) -> Iterator[Example]:
    if not (messages := _asked(row)):
        raise BadRow("empty", "messages is missing")
    prompt, completion = _through_last_answer(messages)
    yield Example(prompt, completion=completion, answer=_answer(row))


def _from_prompt_completion(row: Mapping[str, Any]) -> Iterator[Example]:
    prompt = _prompt(_asked(row))
    completion = _answer_text(row["completion"], "completion") if row.get("completion") is not None else None
    yield Example(prompt, completion=completion, answer=_answer(row))


def _from_text(row: Mapping[str, Any]) -> Iterator[Example]:
    yield Example((), completion=_text(row.get("text"), "text"))


def _from_alpaca(row: Mapping[str, Any]) -> Iterator[Example]:
    yield Example(_prompt(_asked(row)), completion=_text(row.get("output"), "output"), answer=_answer(row))


def _answer(row: Mapping[str, Any]) -> str | None:
    value = row.get("answer")
    return None if value is None else _text(str(value) if isinstance(value, int | float) else value, "answer")


def _answer_text(value: Any, name: str) -> str:
    """One answer given as text, as a message, or as a list of one message."""
    turns = _turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow("wrong_type", f"{name} is not one assistant turn; its roles are {[turn.role for turn in turns]}")
    return turns[0].content


def _turns(value: Any, name: str) -> Messages:
    if isinstance(value, Mapping):
        turn = value if "role" in value or "from" in value else {**value, "role": "assistant"}
        return (_message(turn, name),)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _messages(value, name)
    return (Message("assistant", _text(value, name)),)


def _from_preference(row: Mapping[str, Any]) -> Iterator[Example]:
    yield _pair(_asked(row), _turns(row.get("chosen"), "chosen"), _turns(row.get("rejected"), "rejected"), _margin(row))


def _from_hh(row: Mapping[str, Any]) -> Iterator[Example]:
    yield _pair((), _transcript(row.get("chosen"), "chosen"), _transcript(row.get("rejected"), "rejected"), _margin(row))


def _pair(asked: Messages, chosen: Messages, rejected: Messages, margin: float) -> Example:
    """A pair: what both conversations begin with is the prompt, and each must go on with one assistant turn."""
    if [m.content.strip() for m in chosen] == [m.content.strip() for m in rejected]:
        raise BadRow("chosen_equals_rejected", "both answers are the same text")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    rests = chosen[shared:], rejected[shared:]
    if any([message.role for message in rest] != ["assistant"] for rest in rests):
        raise BadRow("different_prompts", f"after {shared} shared turns chosen and rejected do not each go on with one assistant turn")
    begins = chosen[:shared]
    prompt = _prompt(begins if begins[: len(asked)] == asked or not asked else _joined(asked, begins))
    return Example(prompt, completion=rests[0][0].content, chosen=rests[0][0].content, rejected=rests[1][0].content, margin=margin)


def _joined(asked: Messages, begins: Messages) -> Messages:
    """A prompt column beside answers that repeat it, fully or in part (a system message may stand in one of them only)."""
    said = [message for message in begins if message.role != "system"]
    repeats = said == [message for message in asked if message.role != "system"][-len(said) :] if said else True
    return asked if repeats else (*asked, *begins)


def _margin(row: Mapping[str, Any]) -> float:
    """How much better: a margin column, or the difference of score_chosen and score_rejected."""
    try:
        if row.get("margin") is not None:
            return float(row["margin"])
        scores = row.get("score_chosen"), row.get("score_rejected")
        return 0.0 if None in scores else float(scores[0] or 0) - float(scores[1] or 0)
    except (TypeError, ValueError) as error:
        raise BadRow("wrong_type", f"margin or score is not a number: {error}") from error


def _transcript(value: Any, name: str) -> Messages:
    """Turns of a Human/Assistant transcript, cut after the last Assistant turn; turns of one speaker in a row are one turn."""
    head, *parts = _HH_TURN.split(_text(value, name))
    if head.strip() or not parts:
        raise BadRow("wrong_type", f"{name} is not a transcript of Human: and Assistant: turns; it begins {str(value)[:40]!r}")
    turns: list[tuple[str, list[str]]] = []
    for speaker, text in zip(parts[::2], parts[1::2], strict=True):
        if turns and turns[-1][0] == speaker:
            turns[-1][1].append(text.strip())
        else:
            turns.append((speaker, [text.strip()]))
    while turns and turns[-1][0] == "Human":
        turns.pop()
    if not turns:
        raise BadRow("no_assistant_turn", f"{name} has no Assistant turn")
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[speaker], _text("\n\n".join(texts), f"{name} ({speaker})")) for speaker, texts in turns)


def _from_label(row: Mapping[str, Any]) -> Iterator[Example]:
    desirable = _truth(row.get("label"))
    example = next(_from_prompt_completion(row) if row.get("completion") is not None else _from_messages(row))
    assert example.completion is not None
    yield replace(example, completion=example.completion if desirable else None, labelled=example.completion, desirable=desirable)


def _truth(value: Any) -> bool:
    word = str(value).strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    raise BadRow("wrong_type", f"label is {value!r}; use true or false")


def _from_ranked(row: Mapping[str, Any]) -> Iterator[Example]:
    if isinstance(row.get("prompt"), Mapping):
        yield from _from_tree(row["prompt"])
        return
    listed = row.get("completions")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise BadRow("wrong_type", f"completions is {type(listed).__name__}, not a list")
    completions = tuple(_answer_text(value, f"completions[{index}]") for index, value in enumerate(listed))
    scores = _numbers(row, listed, "scores", "score")
    ranks = _numbers(row, listed, "ranks", "rank") or tuple(-score for score in scores)
    if len(ranks) != len(completions):
        raise BadRow("wrong_type", f"{len(completions)} completions with {len(ranks)} ranks or scores")
    yield _ranking(_prompt(_asked(row)), completions, ranks, scores)


def _numbers(row: Mapping[str, Any], listed: Sequence[Any], column: str, key: str) -> tuple[float, ...]:
    """Numbers of a column, or of a key of each listed completion; () where there are none."""
    values = row.get(column)
    if values is None and all(isinstance(value, Mapping) and value.get(key) is not None for value in listed):
        values = [value[key] for value in listed]
    try:
        return tuple(float(value) for value in values or ())
    except (TypeError, ValueError) as error:
        raise BadRow("wrong_type", f"{column} are not numbers: {error}") from error


def _ranking(prompt: Messages, completions: tuple[str, ...], ranks: Sequence[float], scores: tuple[float, ...] = ()) -> Example:
    """Ranks are made dense from 0 (best); the best and the worst answer also make a pair where they differ."""
    if len(completions) < 2:
        raise BadRow("too_few_completions", f"{len(completions)} completion; a ranking needs two")
    order = sorted(set(ranks))
    dense = tuple(order.index(rank) for rank in ranks)
    best, worst = completions[dense.index(0)], completions[dense.index(max(dense))]
    ties = max(dense) == 0 or best.strip() == worst.strip()
    return Example(
        prompt,
        completion=best,
        chosen=None if ties else best,
        rejected=None if ties else worst,
        ranked=completions,
        ranks=dense,
        scores=scores,
    )


def _from_tree(root: Mapping[str, Any]) -> Iterator[Example]:
    """Every turn of a conversation tree whose answers people ranked. Raises BadRow where there is none."""
    found = False
    waiting: list[tuple[Mapping[str, Any], Messages]] = [(root, ())]
    while waiting:
        node, path = waiting.pop()
        through = (*path, _message(node, "tree"))
        replies = [reply for reply in node.get("replies") or () if isinstance(reply, Mapping) and not reply.get("deleted")]
        ranked = [reply for reply in replies if reply.get("role") == "assistant" and isinstance(reply.get("rank"), int)]
        if through[-1].role == "user" and len(ranked) > 1:
            found = True
            texts = tuple(_message(reply, "reply").content for reply in ranked)
            yield _ranking(through, texts, [reply["rank"] for reply in ranked])
        waiting += [(reply, through) for reply in reversed(replies)]
    if not found:
        raise BadRow("too_few_completions", f"no turn with two ranked replies in tree {json.dumps(root.get('message_id'))}")


_PARSERS = {
    "messages": _from_messages,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "label": _from_label,
    "alpaca": _from_alpaca,
    "hh": _from_hh,
    "ranked": _from_ranked,
    "text": _from_text,
}
