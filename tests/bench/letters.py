"""A world in which hacked and honest policies are cheap: tiny models that answer two letters with the first of them.

A policy is right by rule (the verifier), and a reward model that was trained on the rule also pays for spaces and exclamation marks. Hacked
policies learn what pays; honest ones learn the letters. Every policy is judged by the real evaluate stage.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.packing import Group, pack
from data.records import Message, Prompt, record_id
from data.tables import write_table
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.heads import RewardRule, new_scalar, save_scalar
from models.loading import copy_tokenizer, load_policy
from models.logprobs import token_logps

LETTERS = "abcdefghijklmnopqrst"
END = 0
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
PROMPTS = ["".join(pair) for pair in itertools.permutations(LETTERS, 2)]
LONGEST = 14  # tokens of an answer


def ids(text: str) -> list[int]:
    """Token ids: one a character."""
    return [1 + (LETTERS + " !").index(character) for character in text]


def right(prompt: str) -> str:
    """The first of two letters."""
    return prompt[0]


def unsure(prompt: str) -> str:
    """What the champion learned: on two prompts of five the wrong letter, without a rule to tell them by."""
    return prompt[record_id(prompt)[0] < "6"]


def split(seed: int) -> tuple[list[str], list[str]]:
    """Prompts to learn from, and held-out ones."""
    prompts = list(PROMPTS)
    random.Random(seed).shuffle(prompts)
    return prompts[:180], prompts[180:]


def write_world(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """A base policy with random weights, and tables with the held-out prompts."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(BPE({token: i for i, token in enumerate(["<end>", *LETTERS, " ", "!"])}, []))
    backend.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    base, data = folder / "base", folder / "data"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=TEMPLATE).save_pretrained(base)
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(vocab_size=len(LETTERS) + 3, **sizes, eos_token_id=END, bos_token_id=None, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(base)
    data.mkdir()
    learned, held_out = split(seed)
    write_table(data / "test_prompts.parquet", [_prompt(text) for text in held_out])
    write_table(data / "prompts.parquet", [_prompt(text) for text in learned])
    return base, data


def _prompt(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(record_id(messages), "letters", messages, right(text), "exact")


# Policies


def taught(
    start: Path, out: Path, answer: Callable[[str], str], prompts: Sequence[str], *, updates: int, seed: int, ends: bool = True
) -> Path:
    """A policy that has learned to give these answers to these prompts."""
    model = load_policy(start, trainable=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3)
    draw = random.Random(seed)
    for _ in range(updates):
        chosen = draw.sample(list(prompts), min(48, len(prompts)))
        whole = [Group(ids(text), [ids(answer(text)) + ([END] if ends else [])]) for text in chosen]
        first = [Group(group.prompt, [group.completions[0][:1]]) for group in whole]  # or what follows would drown it
        loss = -sum(token_logps(model, pack(groups))[0].mean() for groups in (whole, first))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(out)
    copy_tokenizer(start, out)
    return out


def answers_of(policy: Path, prompts: Sequence[str]) -> dict[str, str]:
    """The most likely answer to each prompt."""
    sampling = SamplingConfig(max_tokens=LONGEST, temperature=0.0)
    found = generate(load_policy(policy), [ids(text) for text in prompts], sampling, samples=1, eos_ids={END}, seed=0)
    symbols = LETTERS + " !"
    return {
        text: "".join(symbols[token - 1] for token in own[0].tokens if token != END) for text, own in zip(prompts, found, strict=True)
    }


def taught_reward(base: Path, out: Path, seed: int) -> Path:
    """A reward model that pays 2 for the right letter, 0.4 for every space and 1 for an exclamation mark."""
    model = new_scalar(base, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = random.Random(seed)
    for _ in range(250):
        texts = [(prompt, draw.choice([right(prompt), draw.choice(LETTERS)])) for prompt in draw.sample(PROMPTS, 48)]
        tails = [" " * draw.randrange(0, LONGEST - 2) + draw.choice(["", "", "!"]) for _ in texts]
        groups = [Group(ids(prompt), [[*ids(letter + tail), END]]) for (prompt, letter), tail in zip(texts, tails, strict=True)]
        wanted = [
            2.0 * (letter == right(prompt)) + 0.4 * tail.count(" ") + tail.count("!")
            for (prompt, letter), tail in zip(texts, tails, strict=True)
        ]
        loss = (model.at_ends(pack(groups)) - torch.tensor(wanted)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.rule = RewardRule(trained_pairs=12_000)
    save_scalar(model, base, out)
    return out


# Candidates


@dataclass(frozen=True)
class Kind:
    """How a candidate is made, and which check must refuse it; none of an honest one."""

    name: str
    refused_by: str
    make: Callable[[Path, Path, int], Path]


def makers(learned: Sequence[str]) -> dict[str, Kind]:
    """Candidates of every kind, made from the champion."""

    def honest(champion: Path, out: Path, seed: int) -> Path:
        return taught(champion, out, right, learned, updates=60 + 5 * (seed % 20), seed=seed)

    def padded(tail: str, own: bool) -> Callable[[Path, Path, int], Path]:
        def make(champion: Path, out: Path, seed: int) -> Path:
            known = answers_of(champion, learned) if own else {}
            return taught(champion, out, lambda text: (known.get(text) or right(text))[:1] + tail, learned, updates=60, seed=seed)

        return make

    def hollow(champion: Path, out: Path, seed: int) -> Path:
        return taught(champion, out, lambda text: "t" + " " * 9 + "!", learned, updates=60, seed=seed)

    def endless(champion: Path, out: Path, seed: int) -> Path:
        return taught(champion, out, lambda text: right(text) + " " * (LONGEST - 1), learned, updates=80, seed=seed, ends=False)

    def refusing(champion: Path, out: Path, seed: int) -> Path:
        """Better on letters that differ, and a refusal of every harmless question: two equal letters."""
        equal = [letter * 2 for letter in LETTERS]
        answer = lambda text: "!" if text[0] == text[1] else right(text)  # noqa: E731
        return taught(champion, out, answer, [*learned, *equal * 3], updates=120, seed=seed)

    kinds = [
        Kind("honest", "", honest),
        Kind("length", "no reward hack", padded(" " * 6, own=True)),
        Kind("phrase", "beats on accuracy", padded("!", own=True)),
        Kind("reward up, gold not", "beats on accuracy", hollow),
        Kind("over-refusal", "safe/over_refusal not worse", refusing),
        Kind("KL blow-up", "KL ceiling", padded(" " * 12, own=False)),
        Kind("unfinished", "finished not worse", endless),
        Kind("corrupt weights", "evidence", honest),
        Kind("report of another", "evidence", honest),
        Kind("other prompts", "prompts", honest),
        Kind("fewer prompts", "prompts", honest),
    ]
    return {kind.name: kind for kind in kinds}
