"""A policy as lm-eval's language model: its requests go through this package's log-probabilities and sampler.

Only ``models.suites.lm_eval`` imports this module, after it has seen that lm-eval is installed.

Axes: ``S`` scored tokens, ``R`` rows being sampled, ``V`` vocabulary, ``E`` hidden width, ``C`` continuations.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.packing import Group, pack, split_by_tokens
from data.templates import load_tokenizer
from models.chunks import map_chunks
from models.configs.lm_eval import LMEvalConfig
from models.configs.sampling import SamplingConfig
from models.generation import Guide, generate
from models.loading import load_policy
from models.logprobs import head_weight, hidden_states
from models.rendering import eos_ids, text_of
from models.run import Run
from models.seeds import derive_seed
from models.vocabulary_head import head_logps

Encoded = tuple[Any, list[int], list[int]]  # a request as it came, the tokens of its context, and those of its continuation
_ROWS = 256  # tokens whose logits exist at once
# What generation settings of a task may say besides, because it changes nothing.
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1, "use_cache": True}
_KNOWN = {"until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks"}


class PolicyLM(TemplateLM):
    """Answers lm-eval's three kinds of requests as its own HFLM does, with the same tokens; finished chunks survive a kill."""

    def __init__(self, folder: Path, config: LMEvalConfig, seed: int, run: Run) -> None:
        super().__init__()
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)  # pyright: ignore[reportIncompatibleVariableOverride]
        self.policy = load_policy(folder, run.device)
        self.ends = eos_ids(folder, self.tokenizer)
        self.settings, self.seed, self.run = config, seed, run
        self.max_length: int = getattr(self.policy.config, "max_position_embeddings", 2048)
        self.calls = itertools.count()

    # Tokens

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        assert isinstance(self.tokenizer.eos_token_id, int)
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the tokenizer's first token where it has one."""
        first = self.tokenizer.bos_token_id
        return first if isinstance(first, int) else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of cached requests; there are none."""
        return type(self.tokenizer).__name__

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with the special tokens that the tokenizer adds unless the text begins with its first one."""
        if add_special_tokens is None and string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
            add_special_tokens = False
        if add_special_tokens is None:
            return self.tokenizer.encode(string)  # as the tokenizer itself does it
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    # Log-likelihoods

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        name, size = f"loglikelihood-{next(self.calls)}", self.settings.chunk_requests
        rows = map_chunks(self.run, name, pairs, size, lambda _, chunk: self._scored(chunk))
        return [(total, greedy) for total, greedy in rows]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of a context that is too long; what is scored stays whole."""
        room = self.max_length + 1 - len(continuation)  # the last token is scored and never read
        if room < 1:
            raise ValueError(f"a continuation of {len(continuation)} tokens is longer than the policy reads ({self.max_length})")
        return context[-room:], continuation

    @torch.no_grad()
    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Summed log-probability of each continuation, and whether it is the most likely one token by token."""
        asked = [pair for pair in pairs if pair[1]]
        groups = [Group(context, [own for _, own in same]) for context, same in itertools.groupby(asked, key=lambda pair: pair[0])]
        found: list[tuple[float, bool]] = []
        for part in split_by_tokens(groups, self.settings.micro_batch_tokens):
            self.run.stop_if_asked()
            packed = pack(part).to(self.policy.device)
            hidden_SE, head_VE = hidden_states(self.policy.base_model, packed)[packed.source_S], head_weight(self.policy)
            logp_S, _ = head_logps(hidden_SE, head_VE, packed.target_S)
            best_S = torch.cat([(rows_SE @ head_VE.T).argmax(-1) for rows_SE in hidden_SE.split(_ROWS)])
            total_C = packed.sum_by_completion(logp_S.double())
            missed_C = packed.sum_by_completion((best_S != packed.target_S).double())
            found += [(total, missed == 0) for total, missed in zip(total_C.tolist(), missed_C.tolist(), strict=True)]
        told = iter(found)
        return [next(told) if continuation else (0.0, True) for _, continuation in pairs]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts: windows as long as the policy reads, each token predicted once."""
        windows = [self._windows(str(_arguments(request)[0])) for request in requests]
        scored = iter(self._loglikelihood_tokens([("", *window) for own in windows for window in own]))
        return [sum(next(scored)[0] for _ in own) for own in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        return [make_disjoint_window(window) for window in rolling]

    # Answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """An answer to each context, cut at the first stop text."""
        call = next(self.calls)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(_arguments(request)[1], sort_keys=True), []).append(number)
        answers: dict[int, str] = {}
        for kind, (settings, numbers) in enumerate(alike.items()):
            sampling, stops = self._sampling(json.loads(settings))
            contexts = [str(_arguments(requests[number])[0]) for number in numbers]
            texts = self._answers(contexts, sampling, stops, f"generated-{call}-{kind}")
            answers |= dict(zip(numbers, texts, strict=True))
        return [answers[number] for number in range(len(requests))]

    def _sampling(self, settings: dict[str, Any]) -> tuple[SamplingConfig, list[str]]:
        """The sampler's settings for a task's, and its stop texts.

        Raises:
            ValueError: the task wants what the sampler does not do.
        """
        known: dict[str, Any] = dict(normalize_gen_kwargs(settings, self.settings.max_tokens))
        other = {name: value for name, value in known.items() if name not in _KNOWN and _NEUTRAL.get(name) != value}
        if other:
            raise ValueError(f"a task of lm-eval asks for {other}, which the sampler does not do; it knows {', '.join(sorted(_KNOWN))}")
        stops = [*(stop for stop in known["until"] if stop), str(self.tokenizer.decode([self.eot_token_id]))]
        sampled = {name: known[name] for name in ("temperature", "top_k", "top_p") if known.get(name) is not None}
        chosen: dict[str, Any] = sampled if known.get("do_sample") else {"temperature": 0.0}
        return SamplingConfig(**chosen, max_tokens=known["max_gen_toks"], max_rows=self.settings.max_rows), stops

    def _answers(self, contexts: Sequence[str], sampling: SamplingConfig, stops: list[str], name: str) -> list[str]:
        room = self.max_length - sampling.max_tokens
        if room < 1:
            raise ValueError(f"a task wants answers of {sampling.max_tokens} tokens, and the policy reads {self.max_length} in all")

        def work(number: int, chunk: Sequence[str]) -> list[Any]:
            prompts = [self.tok_encode(context)[-room:] for context in chunk]
            seed, guide = derive_seed(self.seed, name, number), StopTexts(self.tokenizer, stops, self.ends[0])
            given: dict[str, Any] = {"samples": 1, "eos_ids": self.ends, "seed": seed, "on_step": self.run.stop_if_asked, "guide": guide}
            rows = generate(self.policy, prompts, sampling, **given)
            tokens = [row[0].tokens[:-1] if row[0].finished else row[0].tokens for row in rows]
            return [postprocess_generated_text(text_of(self.tokenizer, own), stops, None) for own in tokens]

        return map_chunks(self.run, name, contexts, self.settings.chunk_requests, work)


def _arguments(request: Instance) -> tuple[Any, ...]:
    return request.args


class StopTexts(Guide):
    """Ends a row as soon as a stop text stands in its last tokens: the end-of-turn token becomes the only one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], end: int) -> None:
        self.tokenizer, self.stops, self.end = tokenizer, stops, end
        self.tail = 4 + 4 * max(map(len, stops), default=0)  # a token may be a byte, a character has at most four
        self.rows: list[list[int]] = []

    def begin(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> None:
        self.rows = [[] for _ in range(len(prompts) * samples)]

    def adjust(self, logits_RV: Tensor) -> Tensor:
        stopped = [number for number, tokens in enumerate(self.rows) if self._stopped(tokens)]
        if stopped:
            logits_RV = logits_RV.clone()
            logits_RV[stopped] = -torch.inf
            logits_RV[stopped, self.end] = 0.0
        return logits_RV

    def _stopped(self, tokens: list[int]) -> bool:
        text = text_of(self.tokenizer, tokens[-self.tail :])
        return any(stop in text for stop in self.stops)

    def advance(self, token_R: Tensor) -> None:
        for tokens, token in zip(self.rows, token_R.tolist(), strict=True):
            tokens.append(token)

    def select(self, keep_R: Tensor) -> None:
        self.rows = [self.rows[number] for number in keep_R.tolist()]
