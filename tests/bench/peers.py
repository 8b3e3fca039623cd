"""The peers' side: TRL's trainers and transformers' `generate`, as their documentation uses them, with a gate where an update ends.

Settings that change what is computed are ours (batch, lengths, learning rate, no dropout); where a peer can do the same work in several
ways, `variant` chooses, and the report names the one that was fastest on the machine at hand.
"""

# The libraries compared with are looked at as their documentation shows them, not as their annotations do.
# pyright: reportPrivateImportUsage=false, reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from data.templates import load_tokenizer, render_prompt
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.rendering import eos_ids
from models.training.order import batch_indices
from models.vllm_sampler import VllmSampler
from models.worker import thread_count
from tests.bench.gate import Gate
from tests.bench.work import SEED, WORKS, Work, Writer, plain, share_of_e

# Of this project's batch order.
TAGS = {"sft": "imitation", "reward_model": "reward_model", "dpo": "dpo", "grpo": "prompts", "ppo": "prompts"}


class Laps(TrainerCallback):
    """Waits at the gate before the first update and after each."""

    def __init__(self, gate: Gate, tokens_of_lap: Any = None):
        self.gate, self.tokens_of_lap, self.done = gate, tokens_of_lap, 0
        self.sampled: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is loaded."""
        self.gate.lap()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update is done."""
        mean = sum(self.sampled) / len(self.sampled) if self.sampled else 0.0
        self.gate.lap(tokens=self.tokens_of_lap(self.done) if self.tokens_of_lap else 0, completion_tokens=mean)
        self.done += 1
        self.sampled.clear()


def main(name: str, model: Path, folder: Path, variant: str) -> None:
    """Run one comparison's laps until the driver is done."""
    gate = Gate()
    torch.manual_seed(SEED)
    torch.set_num_threads(thread_count())
    work, writer = WORKS[name], Writer(model)
    if name.startswith("generate"):
        (_generate_by_vllm if "vllm" in variant else _generate)(gate, work, writer, model)
    settings = {
        "output_dir": str(folder / "out"),
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": "checkpointing" in variant,
        "use_cpu": not torch.cuda.is_available(),
    }
    settings |= {"bf16": False} if "pure" in variant else {"bf16": True}
    dtype = "bfloat16" if "pure" in variant else "float32"
    globals()[f"_{name}"](gate, work, writer, model, settings, dtype, variant)


def _configured(gate: Gate, kind: Any, **knobs: Any) -> Any:
    """A trainer's configuration; the gate tells what was set, all else is the peer's default."""
    gate.settings = knobs
    return kind(**knobs)


def in_our_order(records: list[Any], work: Work, tag: str) -> list[Any]:
    """Records as this project's loop meets them, for a peer that takes them one after the other."""
    laps = range(len(records) // work.batch)
    return [records[i] for lap in laps for i in batch_indices(len(records), work.batch, lap, SEED, tag)]


def _sft(gate, work, writer, model, settings, dtype, variant) -> None:
    from trl import SFTConfig, SFTTrainer

    records = in_our_order(writer.demonstrations(work), work, TAGS["sft"])
    rows = [{"prompt": plain(r.messages[:-1]), "completion": plain(r.messages[-1:])} for r in records]
    config = _configured(
        gate,
        SFTConfig,
        **settings,
        per_device_train_batch_size=work.batch,
        train_sampling_strategy="sequential",
        max_length=2048,
        packing=False,
        model_init_kwargs={"dtype": dtype},
        num_train_epochs=9,
    )
    laps = Laps(gate)
    trainer = SFTTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows), callbacks=[laps])
    tokenised: Any = trainer.train_dataset
    lengths = [len(row) for row in tokenised["input_ids"]]
    laps.tokens_of_lap = lambda lap: sum(lengths[i % len(lengths)] for i in range(lap * work.batch, (lap + 1) * work.batch))
    trainer.train()


def _pairs(writer: Writer, work: Work, tag: str) -> Dataset:
    records = in_our_order(writer.preferences(work), work, tag)
    answer = [{"role": "assistant"}]
    return Dataset.from_list(
        [
            {
                "prompt": plain(r.prompt),
                "chosen": [answer[0] | {"content": r.chosen}],
                "rejected": [answer[0] | {"content": r.rejected}],
            }
            for r in records
        ]
    )


def _reward_model(gate, work, writer, model, settings, dtype, variant) -> None:
    from trl import RewardConfig, RewardTrainer

    config = _configured(
        gate,
        RewardConfig,
        **settings,
        per_device_train_batch_size=work.batch,
        train_sampling_strategy="sequential",
        max_length=2048,
        model_init_kwargs={"dtype": dtype},
        num_train_epochs=9,
    )
    RewardTrainer(str(model), args=config, train_dataset=_pairs(writer, work, TAGS["reward_model"]), callbacks=[Laps(gate)]).train()


def _dpo(gate, work, writer, model, settings, dtype, variant) -> None:
    from trl import DPOConfig, DPOTrainer

    config = _configured(
        gate,
        DPOConfig,
        **settings,
        per_device_train_batch_size=work.batch,
        train_sampling_strategy="sequential",
        max_length=2048,
        model_init_kwargs={"dtype": dtype},
        num_train_epochs=9,
    )
    DPOTrainer(str(model), args=config, train_dataset=_pairs(writer, work, TAGS["dpo"]), callbacks=[Laps(gate)]).train()


def _grpo(gate, work, writer, model, settings, dtype, variant) -> None:
    from trl import GRPOConfig, GRPOTrainer

    records = in_our_order(writer.prompts(work), work, TAGS["grpo"])
    laps = Laps(gate)

    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        laps.sampled.extend(map(len, completion_ids))
        return [share_of_e(completion[0]["content"]) for completion in completions]

    rows = work.batch * work.samples
    passes = 4 if "passes" in variant else 1
    config = _configured(
        gate,
        GRPOConfig,
        **settings,
        per_device_train_batch_size=rows // passes,
        gradient_accumulation_steps=passes,
        num_generations=work.samples,
        max_completion_length=work.max_tokens,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": dtype},
        num_train_epochs=9,
    )
    dataset = Dataset.from_list([{"prompt": plain(r.messages)} for r in records])
    GRPOTrainer(str(model), reward_funcs=reward, args=config, train_dataset=dataset, callbacks=[laps]).train()


def _ppo(gate, work, writer, model, settings, dtype, variant) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(model, dtype=dtype) for _ in range(2))
    value, reward = (AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype, num_labels=1) for _ in range(2))
    asked = [plain(r.messages) for r in in_our_order(writer.prompts(work), work, TAGS["ppo"])]
    rows = [{"input_ids": tokenizer.apply_chat_template(m, add_generation_prompt=True, return_dict=False)} for m in asked]
    passes = 8 if "passes" in variant else 1
    config = _configured(
        gate,
        PPOConfig,
        **settings,
        per_device_train_batch_size=work.batch // passes,
        gradient_accumulation_steps=passes,
        local_rollout_forward_batch_size=work.batch // passes,
        num_ppo_epochs=1,
        num_mini_batches=1,
        num_sample_generations=0,
        response_length=work.max_tokens,
        temperature=1.0,
        stop_token="eos",
        kl_coef=0.05,
        total_episodes=work.batch * 1000,
    )
    laps = Laps(gate)
    _count_responses(laps)
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        callbacks=[laps],
    )
    unshuffled = DataLoader(trainer.train_dataset, work.batch, shuffle=False, collate_fn=trainer.data_collator, drop_last=True)
    trainer.dataloader = trainer.accelerator.prepare(unshuffled)
    trainer.train()


def _count_responses(laps: Laps) -> None:
    """Have the trainer's truncation of responses, which it does anyway, note their real lengths: up to the stop token and with it."""
    from trl.experimental.ppo import ppo_trainer

    truncate = ppo_trainer.truncate_response

    def counting(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
        laps.sampled += real_lengths(responses, [stop])
        return truncate(stop, pad, responses)

    ppo_trainer.truncate_response = counting


def real_lengths(rows: torch.Tensor, stops: list[int]) -> list[int]:
    """Tokens of each row up to its first stop token, that one counted; what follows is padding."""
    ended = torch.isin(rows, torch.tensor(stops, device=rows.device)).long().cumsum(-1)
    return ((ended == 0).sum(-1) + (ended > 0).any(-1)).tolist()


def _generate(gate: Gate, work: Work, writer: Writer, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    eos = policy.generation_config.eos_token_id
    stops = eos if isinstance(eos, list) else [eos]
    knobs = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_new_tokens": work.max_tokens,
        "num_return_sequences": work.samples,
        "pad_token_id": tokenizer.pad_token_id,
    }
    gate.settings = knobs | {"dtype": str(policy.dtype)}
    prompts = [plain(r.messages) for r in writer.prompts(work)]
    lap, tokens = 0, 0
    while True:
        gate.lap(tokens=tokens)
        begin = lap * work.batch % len(prompts)
        batch = tokenizer.apply_chat_template(
            prompts[begin : begin + work.batch], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        torch.manual_seed(lap)
        with torch.inference_mode():
            out = policy.generate(**batch.to(policy.device), **knobs)
        tokens = sum(real_lengths(out[:, batch["input_ids"].shape[1] :], stops))
        lap += 1


def _generate_by_vllm(gate: Gate, work: Work, writer: Writer, model: Path) -> None:
    policy, tokenizer = load_policy(model, "cuda"), load_tokenizer(model)
    prompts = [render_prompt(tokenizer, prompt.messages) for prompt in writer.prompts(work)]
    sampling = SamplingConfig(max_tokens=work.max_tokens, max_rows=work.batch * work.samples)
    sampler, eos, lap, tokens = VllmSampler(model, policy, sampling), eos_ids(model, tokenizer), 0, 0
    gate.settings = sampling.model_dump(mode="json") | {"engine": "vllm", "samples": work.samples, "dtype": str(policy.dtype)}
    while True:
        gate.lap(tokens=tokens)
        begin = lap * work.batch % len(prompts)
        drawn = sampler.generate(prompts[begin : begin + work.batch], sampling, samples=work.samples, eos_ids=eos, seed=lap)
        tokens = sum(len(completion.tokens) for row in drawn for completion in row)
        lap += 1
