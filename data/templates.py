"""Chat templates: conversations to token ids, with what is trained on marked, and no way to type a control token.

A template is rendered to text once. A control token of that text that came from the *template* is encoded as its id; all the rest
is encoded as plain text, special-token splitting off. A control token typed in a message is hidden behind a stand-in while rendering:
it cannot be taken for the template's.

For content without control tokens the ids equal ``tokenizer.apply_chat_template``, save that no token spans the border between a
generation prompt and a completion: sampling could not have produced it. So a demonstration always begins with exactly the ids that
``render_prompt`` gives for its prompt.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from data.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# For base models, which have none. Turns end with the end-of-sequence token, so that a tuned model knows when to stop.
PLAIN_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ (message['role'] | capitalize) + ':\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
# Some templates (Llama 3) print today's date: the same conversation must give the same ids tomorrow.
_TEMPLATE_DATE = "26 Jul 2024"
_UNLIKE_ANSWER = "the chat template renders the last turn of the roles {} unlike an answer to its generation prompt"
_MARK = "\ufdd0"  # a Unicode noncharacter; where a text holds it all the same it is hidden like a control token
_FIRST_STAND_IN = 0xF0000


@dataclass(frozen=True)
class _Controls:
    """A tokenizer's control tokens: text to id, and the pattern that finds them."""

    ids: dict[str, int]
    absorb_left: frozenset[str]
    absorb_right: frozenset[str]
    pattern: re.Pattern[str]
    forbidden: frozenset[int]


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The fast tokenizer of a local model folder; a base model without a chat template gets ``PLAIN_CHAT_TEMPLATE``.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.json.
        ValueError: it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}: only fast tokenizers are supported, saved by save_pretrained")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no eos_token; name one in tokenizer_config.json")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return tokenizer


def render_prompt(tokenizer: "Tokenizer", messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation that waits for the assistant (generation prompt added). Raises ValueError where the template refuses it."""
    text = _render(tokenizer, messages, waiting=True)
    return _encode_spans(tokenizer, text, _trained_spans(tokenizer, messages, text))[0]


def render_demonstration(tokenizer: "Tokenizer", messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation, and a mask of what is trained: every assistant turn with its end-of-turn token.

    A turn that the template rewrites later (dropped reasoning of earlier turns) is not trained: it was never generated in that form.
    Where a template ends no turn, the end-of-sequence token is added to the last one: without it a model would never learn to stop.

    Raises:
        ValueError: the last message is not the assistant's, the template refuses the conversation, or it renders the last turn in a way
            that cannot be told from its prompt.
    """
    roles = [message.role for message in messages]
    if roles[-1:] != ["assistant"]:
        raise ValueError(f"a demonstration ends with the assistant's message, this one has the roles {roles}")
    text = _render(tokenizer, messages, waiting=False)
    spans = _trained_spans(tokenizer, messages, text)
    prompt = _render(tokenizer, messages[:-1], waiting=True)
    if not spans or spans[-1][0] != len(prompt):
        raise ValueError(_UNLIKE_ANSWER.format(roles))
    ends_turn = bool(_template_tokens(tokenizer, text[: spans[-1][1]], spans[-1][0]))
    return _encode_spans(tokenizer, text, spans, ends_turn=ends_turn)


def render_completion(tokenizer: "Tokenizer", prompt: Sequence[Message], completion: str) -> list[int]:
    """Ids of one answer to a prompt, end-of-turn token included: what ``render_demonstration`` puts after ``render_prompt``'s ids.

    Raises:
        ValueError: as ``render_demonstration``.
    """
    messages = (*prompt, Message("assistant", completion))
    text = _render(tokenizer, messages, waiting=False)
    span = _trained_span(tokenizer, messages, len(prompt), text)
    if span is None:
        raise ValueError(_UNLIKE_ANSWER.format([message.role for message in messages]))
    ids = _encode_after(tokenizer, text[: span[0]], text[slice(*span)])
    return ids if _template_tokens(tokenizer, text[: span[1]], span[0]) else [*ids, _eos_id(tokenizer)]


def render_document(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a plain text, the end-of-sequence token behind it; what looks like a control token in it is text."""
    return [*_encode_plain(tokenizer, _hide(tokenizer, text)), _eos_id(tokenizer)]


def render_text(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a plain text that goes on, behind what the tokenizer itself begins texts with (for some a beginning-of-sequence token)."""
    return [*opening_ids(tokenizer), *_encode_plain(tokenizer, _hide(tokenizer, text))]


def opening_ids(tokenizer: "Tokenizer") -> list[int]:
    """What the tokenizer puts before every text unasked; for many nothing."""
    whole: list[int] = tokenizer("a", verbose=False)["input_ids"]
    bare: list[int] = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    return next(whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare)


def render_continuation(tokenizer: "Tokenizer", before: str, piece: str) -> list[int]:
    """Ids of a text as it goes on after ``render_text``'s; no token spans the border, and nothing ends it."""
    return _encode_after(tokenizer, _hide(tokenizer, before), _hide(tokenizer, piece))


def render_words(tokenizer: "Tokenizer", prompt: Sequence[Message], words: str) -> list[int]:
    """Ids of the words of an answer as they go on after ``render_prompt``'s, without an end of the turn."""
    return _encode_after(tokenizer, _render(tokenizer, prompt, waiting=True), _hide(tokenizer, words))


def control_token_in(tokenizer: "Tokenizer", text: str) -> str | None:
    """The first control token typed in a text, such as ``<|im_start|>``; None where there is none."""
    found = _controls(tokenizer).pattern.search(text)
    return found.group() if found and found.group() != _MARK else None


def end_of_turn_id(tokenizer: "Tokenizer") -> int:
    """Id of the token that ends an assistant turn in this chat template (not always ``eos_token``)."""
    ids, trained = render_demonstration(tokenizer, (Message("user", "a"), Message("assistant", "b")))
    return ids[len(trained) - 1 - trained[::-1].index(True)]


def stop_ids(tokenizer: "Tokenizer") -> list[int]:
    """Ids at which generation stops: end of turn and end of sequence."""
    return sorted({end_of_turn_id(tokenizer), _eos_id(tokenizer)})


def _eos_id(tokenizer: "Tokenizer") -> int:
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise ValueError(f"the tokenizer's eos_token_id is {token_id!r}: name one eos_token in tokenizer_config.json")
    return token_id


@functools.lru_cache(maxsize=8)
def _controls(tokenizer: "Tokenizer") -> _Controls:
    special = {str(token): (token_id, token) for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    texts = [re.escape(text) for text in sorted(special, key=len, reverse=True)]
    return _Controls(
        ids={text: token_id for text, (token_id, _) in special.items()},
        absorb_left=frozenset(text for text, (_, token) in special.items() if token.lstrip),
        absorb_right=frozenset(text for text, (_, token) in special.items() if token.rstrip),
        pattern=re.compile("|".join([*texts, _MARK])),
        # An unknown character honestly becomes the unknown token, special or not.
        forbidden=frozenset(token_id for text, (token_id, _) in special.items() if text != str(tokenizer.unk_token)),
    )


def _render(tokenizer: "Tokenizer", messages: Sequence[Message], *, waiting: bool) -> str:
    """The template's text, control tokens in content hidden."""
    from jinja2 import TemplateError

    rows = [{"role": message.role, "content": _hide(tokenizer, message.content)} for message in messages]
    try:
        text = tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=waiting, date_string=_TEMPLATE_DATE)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses a conversation with the roles {[m.role for m in messages]}: {error}") from error
    return str(text)


def _hide(tokenizer: "Tokenizer", content: str) -> str:
    controls = _controls(tokenizer)
    names = [*controls.ids, _MARK]
    return controls.pattern.sub(lambda found: f"{_MARK}{chr(_FIRST_STAND_IN + names.index(found.group()))}{_MARK}", content)


def _reveal(tokenizer: "Tokenizer", text: str) -> str:
    names = [*_controls(tokenizer).ids, _MARK]
    return re.sub(f"{_MARK}(.){_MARK}", lambda found: names[ord(found.group(1)) - _FIRST_STAND_IN], text)


def _trained_spans(tokenizer: "Tokenizer", messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
    """Where in ``text`` the assistant turns are, end-of-turn token included."""
    spans = (_trained_span(tokenizer, messages, turn, text) for turn in range(1, len(messages)) if messages[turn].role == "assistant")
    return [span for span in spans if span]


def _trained_span(tokenizer: "Tokenizer", messages: Sequence[Message], turn: int, text: str) -> tuple[int, int] | None:
    before = _render(tokenizer, messages[:turn], waiting=True)
    through = _render(tokenizer, messages[: turn + 1], waiting=False)
    if not (through.startswith(before) and text.startswith(through)):
        return None
    ends = [found.end() for found in _template_tokens(tokenizer, through, len(before))]
    end = ends[-1] if ends else len(through.rstrip())
    return (len(before), end) if end > len(before) else None


def _template_tokens(tokenizer: "Tokenizer", text: str, start: int = 0) -> list[re.Match[str]]:
    return [found for found in _controls(tokenizer).pattern.finditer(text, start) if found.group() != _MARK]


def _encode_spans(
    tokenizer: "Tokenizer", text: str, spans: Sequence[tuple[int, int]], *, ends_turn: bool = True
) -> tuple[list[int], list[bool]]:
    """Ids of a text and which lie in ``spans``; no token crosses a span's border. Without ``ends_turn`` the last span gets an end token."""
    borders = [0, *(border for span in spans for border in span), len(text)]
    ids: list[int] = []
    trained: list[bool] = []
    for index, (start, end) in enumerate(pairwise(borders)):
        new = _encode_after(tokenizer, text[:start], text[start:end])
        is_trained = index % 2 == 1
        if is_trained and not ends_turn and index == len(borders) - 3:
            new.append(_eos_id(tokenizer))
        ids += new
        trained += [is_trained] * len(new)
    return ids, trained


def _encode_after(tokenizer: "Tokenizer", before: str, piece: str) -> list[int]:
    """Ids of ``piece`` as they follow ``before`` in one text; as a text of its own where a token would span the border."""
    tokens = _template_tokens(tokenizer, before)
    head = before[tokens[-1].start() :] if tokens else before
    head_ids = _encode(tokenizer, head)
    joint_ids = _encode(tokenizer, head + piece)
    if joint_ids[: len(head_ids)] == head_ids:
        return joint_ids[len(head_ids) :]
    return _encode(tokenizer, piece)


def _encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Ids of a rendered text: the template's control tokens by id, what lies between as plain text."""
    controls = _controls(tokenizer)
    ids: list[int] = []
    position = 0
    strip_next = False
    for found in _template_tokens(tokenizer, text):
        token = found.group()
        plain = text[position : found.start()]
        plain = plain.lstrip() if strip_next else plain
        ids += _encode_plain(tokenizer, plain.rstrip() if token in controls.absorb_left else plain)
        ids.append(controls.ids[token])
        position, strip_next = found.end(), token in controls.absorb_right
    tail = text[position:]
    return ids + _encode_plain(tokenizer, tail.lstrip() if strip_next else tail)


def _encode_plain(tokenizer: "Tokenizer", text: str) -> list[int]:
    if not text:
        return []
    literal = _reveal(tokenizer, text)
    ids: list[int] = tokenizer(literal, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if not _controls(tokenizer).forbidden.isdisjoint(ids):
        raise ValueError(f"this tokenizer reads a control token out of plain text: {literal[:200]!r}")
    return ids
