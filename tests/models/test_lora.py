"""Adapters: what peft computes, nothing at the start, merged into a full policy at the end, and in between nothing else moves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedModel

from data.packing import Group, Packed, pack
from models.configs.base_model import BaseModelConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.heads import load_scalar
from models.loading import load_policy, load_reference, save_policy
from models.logprobs import token_logps
from models.lora import ADAPTER, WithoutAdapters, add_adapters, has_adapters, merge_adapters
from models.memory import BytesPerParameter, estimate, memory_of_models, shape_for, shape_of
from models.memory import _adapters as adapter_parameters
from models.training import dpo, grpo, ppo, reward_model, sft

LORA = LoraSettings(rank=3, alpha=6)
FAST = OptimConfig(learning_rate=1e-2)


@torch.no_grad()
def move(model: torch.nn.Module, seed: int = 0) -> None:
    """Adapters that have learned something."""
    noise = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=noise))


def adapted(folder: Path, settings: LoraSettings = LORA) -> PreTrainedModel:
    model = load_policy(folder, trainable=True)
    add_adapters(model, settings, seed=7)
    return model


@pytest.fixture
def packed(random_groups: Callable[..., list[Group]]) -> Packed:
    return pack(random_groups(4, 2))


def logps(model: Any, packed: Packed) -> torch.Tensor:
    with torch.no_grad():
        return token_logps(model, packed)[0]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("targets", ["attention", "all_linear"])
def test_the_adapters_compute_what_peft_computes(base: Path, targets: Any, random_groups: Callable[..., list[Group]]) -> None:
    from peft import LoraConfig, get_peft_model

    from models.lora import TARGETS

    model = adapted(base, LoraSettings(rank=3, alpha=6, targets=targets))
    move(model)
    plain = LlamaForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="sdpa").eval()
    wrapped = get_peft_model(plain, LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS[targets]))  # type: ignore[arg-type]
    learned = {f"base_model.model.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    assert wrapped.load_state_dict(learned, strict=False).unexpected_keys == []
    for group in random_groups(3, 1, seed=1):
        ids = torch.tensor([[*group.prompt, *group.completions[0]]])
        with torch.no_grad():
            logp_TV = wrapped(input_ids=ids).logits[0].log_softmax(-1)
        target_S = torch.tensor(group.completions[0])
        wanted_S = logp_TV[len(group.prompt) - 1 : -1].gather(-1, target_S[:, None])[:, 0]
        assert logps(model, pack([group])) == pytest.approx(wanted_S, abs=1e-5)
    assert set(learned) == {name for name, p in wrapped.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("folder", ["base", "half"])
def test_a_fresh_policy_is_its_reference_bit_for_bit(folder: str, packed: Packed, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    model = adapted(path)
    alone = logps(load_policy(path), packed)
    assert torch.equal(logps(model, packed), alone)
    move(model)
    assert not torch.equal(logps(model, packed), alone)
    reference: Any = load_reference(model, path)
    assert isinstance(reference, WithoutAdapters)
    assert torch.equal(logps(reference, packed), alone)
    assert not torch.equal(logps(model, packed), alone)  # and on again
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


def test_without_adapters_the_reference_is_a_model_of_its_own(base: Path) -> None:
    model = load_policy(base, trainable=True)
    add_adapters(model, LoraSettings(), seed=0)
    assert not has_adapters(model) and all(p.requires_grad for p in model.parameters())
    reference = load_reference(model, base)
    assert isinstance(reference, PreTrainedModel) and reference is not model


def test_merged_weights_are_the_sum_and_compute_the_same(base: Path, packed: Packed, tmp_path: Path) -> None:
    model = adapted(base)
    move(model)
    before = logps(model, packed)
    layer: Any = model.get_submodule("model.layers.1.mlp.down_proj")
    b, a = layer.lora_B[ADAPTER].weight.detach().double(), layer.lora_A[ADAPTER].weight.detach().double()
    by_hand = layer.base_layer.weight.detach().double() + 6 / 3 * b @ a
    save_policy(model, base, tmp_path)
    saved = load_policy(tmp_path)
    assert type(saved) is LlamaForCausalLM and {p.name for p in tmp_path.iterdir()} >= {"model.safetensors", "tokenizer.json"}
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    assert saved.get_submodule("model.layers.1.mlp.down_proj").weight.double() == pytest.approx(by_hand, abs=1e-6)
    assert (logps(saved, packed) - before).abs().max() < 1e-5
    assert not has_adapters(model)


def test_narrow_weights_are_rounded_once_when_merged(half: Path) -> None:
    model = adapted(half)
    move(model)
    layer: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    b, a = layer.lora_B[ADAPTER].weight.detach().double(), layer.lora_A[ADAPTER].weight.detach().double()
    wanted = (layer.base_layer.weight.detach().double() + 2 * b @ a).bfloat16()
    merge_adapters(model)
    merged: Any = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert torch.equal(merged.weight, wanted)


def test_the_adapters_depend_on_the_seed_alone(base: Path) -> None:
    torch.manual_seed(1)
    first = {name: p for name, p in adapted(base).named_parameters() if p.requires_grad}
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = dict(adapted(base).named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, again[name]) for name, p in first.items())


# Trainers

ROUNDS = {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 3, "sampling": SamplingConfig(max_tokens=4), "optim": FAST}
PAIRS = {"policy": "base", "preferences": "tables"}
TRAINERS: dict[str, tuple[Callable[..., Any], BaseModel, dict[str, str]]] = {
    "sft": (sft.train, SFTConfig(batch_size=4, optim=FAST, lora=LORA), {"base": "base", "data": "tables"}),
    "dpo": (dpo.train, DPOConfig(batch_size=4, optim=FAST, lora=LORA), PAIRS),
    "reward_model": (reward_model.train, RewardModelConfig(batch_size=4, optim=FAST, lora=LORA), PAIRS),
    "grpo": (
        grpo.train,
        GRPOConfig(reward="reward_model", lora=LORA, **ROUNDS),
        {"policy": "base", "data": "tables", "reward": "reward_folder"},
    ),
    "ppo": (ppo.train, PPOConfig(lora=LORA, **ROUNDS), {"policy": "base", "data": "tables", "reward": "reward_folder"}),
}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_moves_its_adapters_and_nothing_else(name: str, new_run: Callable[..., Any], base: Path, request: Any) -> None:
    train, config, inputs = TRAINERS[name]
    run = new_run()
    train(config, seed=1, run=run, **{key: request.getfixturevalue(value) for key, value in inputs.items()})
    before = load_file(base / "model.safetensors")
    after = load_file(run.out / "model.safetensors")
    if name == "reward_model":
        assert load_scalar(run.out).head.weight.abs().sum() > 0
        before = {key.removeprefix("model."): value for key, value in before.items()}
        after = {key.removeprefix("model."): value for key, value in after.items()}
    assert set(after) == set(before)
    ranks = {key: int(torch.linalg.matrix_rank((after[key] - before[key]).double(), atol=1e-4)) for key in before if before[key].ndim == 2}
    assert {key for key in before if not torch.equal(before[key], after[key])} == {key for key in before if "_proj" in key}
    assert all(0 < ranks[key] <= LORA.rank for key in before if "_proj" in key)


def test_kl_to_the_reference_is_zero_at_first_and_grows(
    new_run: Callable[..., Any], journal: Any, base: Path, tables: Path, reward_folder: Path
) -> None:
    run = new_run()
    train, config, _ = TRAINERS["grpo"]
    train(config, policy=base, data=tables, reward=reward_folder, seed=1, run=run)
    first, second = (metrics["train/kl_nats"] for _, metrics in journal(run))
    assert first == 0 and second != 0


def test_adapters_learn_the_demonstrations(new_run: Callable[..., Any], journal: Any, base: Path, tables: Path) -> None:
    run = new_run()
    sft.train(SFTConfig(batch_size=10, epochs=20, optim=FAST, lora=LoraSettings(rank=8)), base=base, data=tables, seed=0, run=run)
    losses = [metrics["train/loss"] for _, metrics in journal(run)]
    assert losses[-1] < losses[0] / 4


def test_a_checkpoint_holds_the_adapters_alone(new_run: Callable[..., Any], base: Path, tables: Path) -> None:
    sizes = {}
    for name, settings in (("full", LoraSettings()), ("lora", LORA)):
        run = new_run(name)
        every = CheckpointConfig(every_s=0, every_updates=1)
        sft.train(SFTConfig(batch_size=4, lora=settings, checkpoint=every), base=base, data=tables, seed=0, run=run)
        (saved,) = run.checkpoints.glob("step-*/tensors.safetensors")
        tensors = load_file(saved)
        sizes[name] = sum(t.nbytes for key, t in tensors.items() if key.startswith("policy/"))
        assert all("lora_" in key for key in tensors if key.startswith("policy/")) is (name == "lora")
    model = adapted(base)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert sizes["lora"] == sum(3 * 4 * p.numel() + 4 for p in learned)  # master, two moments and a step each
    assert sizes["full"] > 3 * sizes["lora"]


# Memory and faults


def test_the_memory_estimate_knows_the_adapters(base: Path) -> None:
    shape = shape_of(base)
    for targets in ("attention", "all_linear"):
        config = SFTConfig(lora=LoraSettings(rank=3, targets=targets))
        model = adapted(base, config.lora)
        assert adapter_parameters(shape, config) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    large = shape_for(BaseModelConfig(dtype="bfloat16"))
    assert large is not None
    full, narrow = (estimate("grpo", GRPOConfig(lora=lora), large) for lora in (LoraSettings(), LORA))
    assert full is not None and narrow is not None
    assert narrow.optimiser < full.optimiser / 50 and narrow.gradients < full.gradients / 50
    assert narrow.weights < 1.05 * large.parameters * 2  # one copy: policy and reference share it
    # By hand: 10 frozen parameters beside which 2 are learned, at 2 bytes, 4 of gradient, 8 of moments, 4 of master.
    assert vars(memory_of_models(10, 1, 0, BytesPerParameter(2, 4, 8, 4), adapters=2)) == {
        "weights": 12 * 2 + 2 * 4,
        "gradients": 2 * 4,
        "optimiser": 2 * 8,
        "activations": 0,
        "kv_cache": 0,
        "ranks": 1,
    }


def test_an_architecture_without_these_matrices_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no .*q_proj.*: use a Llama"):
        add_adapters(model, LORA, seed=0)
