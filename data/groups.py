"""What a trainer sees of a record: a group of tokens, through the chat template of the policy's own tokenizer."""

from typing import TYPE_CHECKING

from data.packing import Group
from data.records import Messages, Preference
from data.templates import render_completion, render_demonstration, render_document, render_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer


def demonstration_group(tokenizer: "Tokenizer", messages: Messages) -> Group:
    """A conversation as one group: everything before the first assistant token is prompt; assistant tokens are scored.

    Raises:
        ValueError: no token would be trained.
    """
    ids, trained = render_demonstration(tokenizer, messages)
    if True not in trained:
        raise ValueError(f"no assistant token in a conversation of roles {[m.role for m in messages]}: nothing would be trained")
    first = trained.index(True)
    end = len(trained) - trained[::-1].index(True)
    return Group(ids[:first], [ids[first:end]], [trained[first:end]])


def pair_group(tokenizer: "Tokenizer", pair: Preference) -> Group:
    """Chosen and rejected answers behind their shared prompt: two completions, in this order."""
    prompt = render_prompt(tokenizer, pair.prompt)
    return Group(prompt, [render_completion(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected)])


def document_group(tokenizer: "Tokenizer", text: str) -> Group:
    """A plain text and its end: every token but the first is scored, each after those before it."""
    ids = render_document(tokenizer, text)
    return Group(ids[:1], [ids[1:]])
