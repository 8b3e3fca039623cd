"""How much memory a stage will need, before it starts: weights, gradients, optimiser, activations and sampler cache, in bytes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.cgroups import memory_headroom
from models.configs.base_model import BaseModelConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.guidance import GuidedEvaluationConfig, TokenRewardConfig
from models.configs.lora import LoraSettings
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.overoptimisation import OveroptimisationConfig
from models.configs.parallel import ParallelConfig
from models.configs.ppo import PPOConfig
from models.configs.reinforce import ActorCriticConfig, OneUpdateConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.rewards import ScoredConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.precision import resolve_dtype

PROCESS_BYTES = 430 * 2**20  # interpreter, torch, transformers and the tables' library, without any tensor
BLOCK_LOGITS, BLOCK_COLUMNS = 2 * 2**20, 1024  # as in models.vocabulary_head
SCORE_CHUNK_TOKENS = 256  # as in models.training.token_reward
SHORT_TOKENS = 256  # as in models.attention: the scores of longer sequences are never all there at once

# SmolLM2-135M, so that a plan can tell before the wheel was ever downloaded.
_PACKAGED_SHAPES = {"smollm2-135m-instruct": (134_515_008, 30, 576, 1536, 9, 3 * 64, 49_152)}


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_width: int  # key-value heads times head width
    vocabulary: int
    weight_bytes: int


@dataclass(frozen=True)
class Lengths:
    """Longest prompt and longest given completion, in tokens; the defaults are what is assumed before the data has told."""

    prompt_tokens: int = 256
    completion_tokens: int = 256


@dataclass(frozen=True)
class BytesPerParameter:
    """How a stage keeps its numbers: a frozen model has weights alone, a trained one all four."""

    weights: int
    gradients: int
    optimiser: int
    masters: int = 0  # float32 copies of narrower weights


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, of all ranks together where several share a model."""

    weights: int
    gradients: int
    optimiser: int
    activations: int = 0
    kv_cache: int = 0  # with the distributions that are sampled from
    ranks: int = 1

    @property
    def models(self) -> int:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> int:
        """The most at once, the process itself included: sampling is over before training begins."""
        return self.ranks * PROCESS_BYTES + self.models + max(self.activations, self.kv_cache)

    @property
    def per_rank(self) -> int:
        """What each device must hold."""
        return self.total // self.ranks


def memory_of_models(parameters: int, trained: int, frozen: int, each: BytesPerParameter, adapters: int = 0) -> Memory:
    """Weights, gradients and optimiser of ``trained`` + ``frozen`` models of equal size.

    By hand, 8 billion parameters at 2 bytes each for weights, gradients and optimiser: PPO trains policy and critic and holds reference
    and reward model, 3 x 16 + 3 x 16 + 16 + 16 = 128 GB; GRPO has no critic, 3 x 16 + 16 + 16 = 80 GB.

    Args:
        parameters: of one model.
        trained: models with gradients and optimiser.
        frozen: models that are only run.
        each: bytes of a parameter.
        adapters: parameters of the low-rank adapters that are trained instead of the first model's weights; 0 = its weights are.
    """
    learned = (trained - (adapters > 0)) * parameters + adapters
    return Memory(
        weights=((trained + frozen) * parameters + adapters) * each.weights + learned * each.masters,
        gradients=learned * each.gradients,
        optimiser=learned * each.optimiser,
    )


def stored_bytes(folder: Path) -> int:
    """Size of the weights of a saved model, without those of its snapshots."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def shape_of(folder: Path) -> ModelShape:
    """The shape of a saved model, from its config.json and the size of its weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    return ModelShape(
        stored_bytes(folder) // width,
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        heads,
        config.get("num_key_value_heads", heads) * head_width,
        config["vocab_size"],
        width,
    )


def shape_for(config: BaseModelConfig) -> ModelShape | None:
    """The shape a base model will have, where that is known before it is there."""
    width = 2 if resolve_dtype(config.dtype) == "bfloat16" else 4
    if config.kind == "packaged" and config.name in _PACKAGED_SHAPES:
        return ModelShape(*_PACKAGED_SHAPES[config.name], width)
    if config.kind == "folder" and (Path(config.name) / "config.json").is_file():
        return shape_of(Path(config.name))
    if config.kind == "scratch":
        s = config.scratch
        kv_width = s.kv_heads * s.hidden_size // s.heads
        block = 2 * s.hidden_size**2 + 2 * s.hidden_size * kv_width + 3 * s.hidden_size * s.intermediate_size
        vocabulary = 259
        return ModelShape(
            s.layers * block + vocabulary * s.hidden_size,
            s.layers,
            s.hidden_size,
            s.intermediate_size,
            s.heads,
            kv_width,
            vocabulary,
            width,
        )
    return None


def lengths_of(*folders: Path) -> Lengths:
    """What the report of curated data says of its tables; the defaults where none of the folders has one."""
    for report in (folder / "report.json" for folder in folders):
        tables = json.loads(report.read_text(encoding="utf-8")).get("tables") if report.is_file() else None
        if tables:  # a model's report has none
            longest = [max(int(table[f"{part}_tokens_max"]) for table in tables.values()) for part in ("prompt", "completion")]
            return Lengths(*longest)
    return Lengths()


def estimate(stage: str, config: BaseModel, shape: ModelShape, lengths: Lengths | None = None) -> Memory | None:
    """What a stage needs for this configuration; None for stages that hold no model.

    Within 15 % of what a stage's process was measured to take on a processor (tests/models/test_memory.py).
    """
    held = _models_held(stage, config)
    if held is None:
        return None
    trained, frozen = held
    lengths = lengths or Lengths()
    each = BytesPerParameter(weights=shape.weight_bytes, gradients=4, optimiser=8, masters=0 if shape.weight_bytes == 4 else 4)
    models = memory_of_models(shape.parameters, trained, frozen, each, _adapters(shape, config))
    parallel = getattr(config, "parallel", None)
    ranks = parallel.ranks if isinstance(parallel, ParallelConfig) else 1
    activations = _kept(shape, config, lengths, ranks) if trained else _one_layer(shape, getattr(config, "micro_batch_tokens", 0))
    # A loss over policy and critic keeps what both have computed until its backward pass.
    at_once = max(1, trained) * activations + _head(shape, config, trained) + _gathered(shape, ranks)
    rounded_gradients = models.gradients // 4 * shape.weight_bytes if each.masters else 0  # they come as the activations go
    return replace(
        models,
        activations=max(ranks * at_once, rounded_gradients),
        kv_cache=_cache(shape, config, lengths.prompt_tokens),
        ranks=ranks,
    )


def _gathered(shape: ModelShape, ranks: int) -> int:
    """What a rank holds of weights that are not its own: embedding or head, two layers, and the gradients of one in float32."""
    if ranks == 1:
        return 0
    head = shape.vocabulary * shape.hidden
    layer = (shape.parameters - head) // shape.layers
    return head * shape.weight_bytes + layer * (2 * shape.weight_bytes + 4)


def snapshot_bytes(config: BaseModel, weight_bytes: int) -> int:
    """Disk that the snapshots of a policy take in its artifact: its weights, so many times. 0 for stages that keep none."""
    checkpoint = getattr(config, "checkpoint", None)
    return checkpoint.snapshots * weight_bytes if isinstance(checkpoint, CheckpointConfig) else 0


# (models trained, models frozen) that a stage holds at once, by the class of its configuration.
_HELD: dict[type[BaseModel], Callable[[Any], tuple[int, int]]] = {
    PPOConfig: lambda c: (2, (c.lora.rank == 0) + _scoring(c)),
    ActorCriticConfig: lambda c: (2, _reference(c) + _scoring(c)),
    OneUpdateConfig: lambda c: (1, _reference(c) + _scoring(c)),
    GRPOConfig: lambda c: (1, _reference(c) + _scoring(c)),
    NashMDConfig: lambda c: (1, 1 + (c.reward != "verifier")),
    OnlineDPOConfig: lambda c: (1, (c.preference.has_reference and c.lora.rank == 0) + _scoring(c)),
    RejectionSamplingConfig: lambda c: (1, int(c.score == "reward_model")),
    OnlineRejectionSamplingConfig: lambda c: (1, int(c.reward == "reward_model")),
    DPOConfig: lambda c: (1, int(c.reference_sync_every > 0)),
    TokenRewardConfig: lambda c: (1, int(c.min_chance > 0)),
    OveroptimisationConfig: lambda c: (0, max(1, _scoring(c))),
    GuidedEvaluationConfig: lambda c: (0, 1 + (c.guidance.mode != "none")),
}
_ONE_TRAINED = ("sft", "reward_model", "kto", "kwise_dpo", "prefix_value", "preference_model")
_ONE_FROZEN = ("sample_candidates", "collect_preferences", "evaluate", "reward_ensemble", "best_of_n")


def _models_held(stage: str, config: BaseModel) -> tuple[int, int] | None:
    """(models trained, models frozen) that a stage holds at once; None where it holds none."""
    for kind, held in _HELD.items():
        if isinstance(config, kind):
            return held(config)
    return (1, 0) if stage in _ONE_TRAINED else (0, 1) if stage in _ONE_FROZEN else None


def _reference(config: Any) -> int:
    """1 where the KL has a price, unless the reference is the policy without its adapters."""
    return int(config.kl_coefficient > 0 and config.lora.rank == 0)


def _scoring(config: ScoredConfig) -> int:
    """Models that score completions; a judge is taken to be of the policy's size."""
    return sum(source in ("reward_model", "judge") for source in config.reward_sources)


def _adapters(shape: ModelShape, config: BaseModel) -> int:
    """Parameters of the low-rank adapters: rank x (width in + width out) of each matrix that has one."""
    lora = getattr(config, "lora", None)
    if not isinstance(lora, LoraSettings):
        return 0
    e, kv, i = shape.hidden, shape.kv_width, shape.intermediate
    widths = 2 * (e + e) + 2 * (e + kv) + (3 * (e + i) if lora.targets == "all_linear" else 0)
    return lora.rank * widths * shape.layers


def _kept(shape: ModelShape, config: BaseModel, lengths: Lengths, ranks: int = 1) -> int:
    """Activations of a micro-batch; twice where a rank's share of an update has several of them.

    Gradients and moments come to lie where the activations of the first were, so that those of the next take another place.
    """
    sequence_tokens = _sequence_tokens(config, lengths)
    groups = getattr(config, "batch_size", 0) or getattr(config, "prompts_per_iteration", 1) // getattr(config, "minibatches", 1)
    micro, update = getattr(config, "micro_batch_tokens", 0), -(-groups * sequence_tokens // ranks)
    return _activations(shape, min(micro, update), sequence_tokens) * (2 if update > micro else 1)


def _activations(shape: ModelShape, tokens: int, sequence_tokens: int) -> int:
    """Saved for the backward pass, by token and layer.

    Six widths (what goes into two norms and comes out of them, the queries, the outputs), keys and values, the three of the feed-forward
    layer, and the scores of sequences short enough to have them.
    """
    widths = 6 * shape.hidden + 2 * shape.kv_width + 3 * shape.intermediate
    scores = shape.heads * min(sequence_tokens, SHORT_TOKENS)  # where the longest has none, shorter ones may
    return tokens * shape.layers * (widths + scores) * shape.weight_bytes


def _sequence_tokens(config: BaseModel, lengths: Lengths) -> int:
    """Tokens of a group, which attend to each other: a prompt with its demonstration, its pair, or all completions sampled for it."""
    sampling = getattr(config, "sampling", None)
    if isinstance(sampling, SamplingConfig):
        return lengths.prompt_tokens + sampling.max_tokens * getattr(config, "samples_per_prompt", 1)
    return lengths.prompt_tokens + lengths.completion_tokens * (1 if isinstance(config, SFTConfig) else 2)


def _one_layer(shape: ModelShape, tokens: int) -> int:
    """A forward pass that keeps nothing: two hidden states and three widths of the feed-forward layer."""
    return tokens * (2 * shape.hidden + 3 * shape.intermediate) * shape.weight_bytes


def _head(shape: ModelShape, config: BaseModel, trained: int) -> int:
    """One block of logits, its powers of two and its rounded copy; in training also the head's gradient and that of the hidden states.

    A head of rewards as wide as the vocabulary has no blocks: four copies of the scores of a chunk of tokens.
    """
    gradient = (trained > 0) * shape.vocabulary * shape.hidden * shape.weight_bytes
    if isinstance(config, TokenRewardConfig):
        return 4 * SCORE_CHUNK_TOKENS * shape.vocabulary * 4 + gradient
    tokens = getattr(config, "micro_batch_tokens", 0)
    logits = min(tokens * shape.vocabulary, max(BLOCK_LOGITS, tokens * BLOCK_COLUMNS))
    hidden = (trained > 0) * tokens * shape.hidden * (4 + 2 * shape.weight_bytes)
    return logits * (2 * 4 + shape.weight_bytes % 4) + hidden + gradient


def _cache(shape: ModelShape, config: BaseModel, prompt_tokens: int) -> int:
    """Keys and values of the prompts, once each, and of the rows at once (half of them are there twice when rows that have ended leave);
    their logits, as computed and in float32; and the copy of the weights that sampling makes: in half precision of all, laid out, otherwise
    of those that are joined.
    """
    sampling = getattr(config, "sampling", None)
    if not isinstance(sampling, SamplingConfig):
        return 0
    samples = getattr(config, "samples_per_prompt", 1)
    prompts = getattr(config, "prompts_per_iteration", 0) or getattr(config, "chunk_prompts", sampling.max_rows)
    rows = min(sampling.max_rows, prompts * samples)
    tokens = rows // samples * prompt_tokens + rows * sampling.max_tokens * 3 // 2
    keys_and_values = tokens * shape.layers * 2 * shape.kv_width * shape.weight_bytes
    joined = shape.layers * shape.hidden * (shape.hidden + 2 * shape.kv_width + 2 * shape.intermediate)
    copied = (shape.parameters if shape.weight_bytes < 4 else joined) * shape.weight_bytes
    return keys_and_values + rows * shape.vocabulary * (shape.weight_bytes + 4) + copied


def available_bytes() -> int:
    """Memory that a new process can have: what the kernel says is available, or less where a container has a limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 2**62)
    room = memory_headroom()
    return free if room is None else min(free, room)


def require_free(label: str, stage: str, config: BaseModel, model: Path, inputs: Sequence[Path]) -> None:
    """Return if the memory that a stage on processors needs is free, as far as that can be told.

    Raises:
        ValueError: it is not.
    """
    needed = estimate(stage, config, shape_of(model), lengths_of(*inputs))
    free = available_bytes()
    if needed is not None and needed.total > free:
        raise ValueError(
            f"{label} needs about {needed.total / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free: "
            "lower micro_batch_tokens or sampling.max_rows, take a smaller model, or free memory"
        )
