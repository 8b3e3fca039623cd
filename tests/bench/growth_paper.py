"""Post-training of a 70B model on 64 GPUs, on paper: memory from the project's own plan, time from operations and bytes moved.

weights 2 bytes a parameter and 4 more of a float32 copy, gradients 4, Adam's moments 8; divided by the GPUs (FSDP2, Zhao et al. 2023)
operations      6 N a trained token, 8 N if its layers are computed again in the backward pass, 2 N one that is looked at
                (Kaplan et al. 2020, table 1; Korthikanti et al. 2022 for the second forward pass)
a pass          gathers all weights forward and again backward and scatters float32 gradients, each (G - 1)/G of the bytes
a decoding step reads all weights and the keys and values of all rows (Pope et al. 2022, section 2)
"""

import math
from dataclasses import dataclass, replace

from pydantic import BaseModel

from models.configs.dpo import DPOConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import PreferencesConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.memory import Lengths, Memory, ModelShape, _models_held, _sequence_tokens, estimate

CHECKPOINT_BYTES = 12  # a parameter: its float32 copy and both moments; the old one stays until the new one is whole
SHARD_BYTES = 50_000_000_000  # largest file of `save_pretrained`
DAY_S = 86_400.0


def parameters_of(layers: int, hidden: int, kv_width: int, intermediate: int, vocabulary: int) -> int:
    """Of a Llama: attention, feed-forward and two norms a layer, the embedding and a head of its own, and the last norm."""
    layer = 2 * hidden**2 + 2 * hidden * kv_width + 3 * hidden * intermediate + 2 * hidden
    return layers * layer + 2 * vocabulary * hidden + hidden


LLAMA_70B = ModelShape(parameters_of(80, 8192, 1024, 28_672, 128_256), 80, 8192, 28_672, 64, 1024, 128_256, weight_bytes=2)


@dataclass(frozen=True)
class Cluster:
    """Published and assumed inputs. Rates are of one GPU, or of a node where they say so."""

    gpus: int = 64
    gpus_a_node: int = 8
    gpu_bytes: float = 80e9
    peak_flops_per_s: float = 989e12
    memory_bytes_per_s: float = 3.35e12
    nvlink_bytes_per_s: float = 450e9
    node_bytes_per_s: float = 8 * 50e9
    disk_bytes_per_s: float = 10e9  # of all together
    used_of_peak: float = 0.4
    used_of_memory: float = 0.6
    used_of_network: float = 0.8
    all_reduce_s: float = 15e-6
    days_between_failures: float = 54 * 16_384 / 419 / 64

    @property
    def flops_per_s(self) -> float:
        """Of all GPUs."""
        return self.gpus * self.peak_flops_per_s * self.used_of_peak

    @property
    def collective_bytes_per_s(self) -> float:
        """At which every GPU receives its part of a ring over all: the slower of the link within a node and the node's own links."""
        return self.used_of_network * min(self.nvlink_bytes_per_s, self.node_bytes_per_s)

    def gather_s(self, n_bytes: float) -> float:
        """All GPUs get all of something of which each has its part."""
        return n_bytes * (self.gpus - 1) / self.gpus / self.collective_bytes_per_s


H100S = Cluster()


@dataclass(frozen=True)
class PaperStage:
    """One stage of the run. The configuration is what one GPU sees of it, in passes of one group, the least that fits in a pass."""

    label: str
    stage: str
    config: BaseModel
    rounds: int
    groups: int  # an update or round, over all GPUs
    trained: int = 0  # how often it trains on a token, with models of this size
    looked: int = 0
    rows: int = 0  # completions generated a round
    metrics: int = 0  # of an update, as counted in this project's own runs

    @property
    def group_tokens(self) -> int:
        """Tokens that go through the model together: a prompt with its demonstration, its pair, or all its completions."""
        return _sequence_tokens(self.config, LENGTHS)

    @property
    def tokens(self) -> int:
        """Of all rounds."""
        return self.rounds * self.groups * self.group_tokens


LENGTHS = Lengths(prompt_tokens=512, completion_tokens=512)
SAMPLED = SamplingConfig(max_tokens=512, max_rows=32)
PAIRS, PAIR, SEQUENCE = 48_000, 1536, 1024

RUN = [
    PaperStage("SFT, 200,000 demonstrations twice", "sft", SFTConfig(batch_size=4, micro_batch_tokens=SEQUENCE), 1562, 256, 1, metrics=8),
    PaperStage(
        "preferences, 60,000 prompts x 4, judged by a model",
        "collect_preferences",
        PreferencesConfig(sampling=SAMPLED, samples_per_prompt=4),
        *(1, 60_000, 0, 1, 240_000),
    ),
    PaperStage(
        "reward model, 48,000 pairs",
        "reward_model",
        RewardModelConfig(batch_size=4, micro_batch_tokens=PAIR),
        *(PAIRS // 256, 256, 1),
        metrics=11,
    ),
    PaperStage("DPO, the same pairs", "dpo", DPOConfig(batch_size=4, micro_batch_tokens=PAIR), PAIRS // 256, 256, 1, 1, metrics=13),
    PaperStage(
        "PPO, 300 rounds of 512, 2 epochs",
        "ppo",
        PPOConfig(prompts_per_iteration=8, samples_per_prompt=1, micro_batch_tokens=SEQUENCE, sampling=SAMPLED),
        *(300, 512, 4, 3, 512, 25),
    ),
    PaperStage(
        "GRPO, 300 rounds of 128 x 8",
        "grpo",
        GRPOConfig(
            reward="reward_model", prompts_per_iteration=2, samples_per_prompt=8, micro_batch_tokens=512 + 8 * 512, sampling=SAMPLED
        ),
        *(300, 128, 1, 2, 1024, 21),
    ),
    PaperStage(
        "evaluation, 6 policies x 1,000 prompts, sampled and greedy",
        "evaluate",
        EvaluateConfig(sampling=SAMPLED, micro_batch_tokens=SEQUENCE),
        *(6, 2000, 0, 2, 2000, 9),
    ),
]

# Memory


@dataclass(frozen=True)
class GpuMemory:
    """Bytes on one GPU, by what they are for."""

    trained_weights: float  # with their float32 copies
    frozen_weights: float
    gradients: float
    optimiser: float
    gathered: float
    activations: float
    recomputed: float  # instead of the activations, if layers are computed again
    kv_cache: float

    @property
    def resident(self) -> float:
        """There all the time."""
        return self.trained_weights + self.frozen_weights + self.gradients + self.optimiser + self.gathered

    @property
    def total(self) -> float:
        """As it is built."""
        return self.resident + max(self.activations, self.kv_cache)

    @property
    def total_recomputed(self) -> float:
        """With layers computed again."""
        return self.resident + max(self.recomputed, self.kv_cache)


def memory_of(stage: PaperStage, groups: int = 1, shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> GpuMemory:
    """What the plan of one process says, its models spread over all GPUs; and what FSDP2 gathers: two layers, the head, a layer's gradient.

    Frozen models are spread as well. The sampler's own copy of the weights is left out: it is what has to go first (see the page).

    groups: to a pass.
    """
    held = _models_held(stage.stage, stage.config)
    assert held is not None
    models = _planned(stage, stage.config, shape)
    frozen = held[1] * shape.parameters * shape.weight_bytes
    layer, head = layer_parameters(shape), shape.vocabulary * shape.hidden
    # Without parameters the plan tells what comes beside the models; with no more groups an update than a pass has, what one pass keeps.
    beside, name = replace(shape, parameters=0), "batch_size" if hasattr(stage.config, "batch_size") else "prompts_per_iteration"
    a_pass = {name: groups, "micro_batch_tokens": groups * stage.group_tokens}
    one_pass = stage.config.model_copy(update=a_pass) if held[0] else stage.config
    inputs = (shape.layers - 1) * shape.hidden * shape.weight_bytes * groups * stage.group_tokens * held[0]
    return GpuMemory(
        (models.weights - frozen) / cluster.gpus,
        frozen / cluster.gpus,
        models.gradients / cluster.gpus,
        models.optimiser / cluster.gpus,
        (2 * layer + head) * shape.weight_bytes + (4 * layer if held[0] else 0),
        _planned(stage, one_pass, beside).activations,
        _planned(stage, one_pass, replace(beside, layers=1)).activations + inputs,
        _planned(stage, stage.config, beside).kv_cache,
    )


def _planned(stage: PaperStage, config: BaseModel, shape: ModelShape) -> Memory:
    need = estimate(stage.stage, config, shape, LENGTHS)
    assert need is not None, f"{stage.stage} holds a model"
    return need


def layer_parameters(shape: ModelShape) -> int:
    """Of one decoder layer's matrices."""
    return shape.hidden * (2 * shape.hidden + 2 * shape.kv_width + 3 * shape.intermediate)


# Time


def train_pass_s(shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> float:
    """Network time of one forward and backward pass: weights gathered twice, float32 gradients scattered."""
    n_bytes = shape.parameters * shape.weight_bytes
    return 2 * cluster.gather_s(n_bytes) + cluster.gather_s(4 * shape.parameters)


def compute_s(stage: PaperStage, recompute: bool = True, shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> float:
    """Operations of a stage over the rate of all GPUs; without generation."""
    each = (8 if recompute else 6) * stage.trained + 2 * stage.looked
    return each * shape.parameters * stage.tokens / cluster.flops_per_s


def network_s(stage: PaperStage, groups_a_pass: int, shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> float:
    """Gathers and scatters of a stage, with so many groups to a pass of a GPU."""
    passes = stage.rounds * math.ceil(stage.groups / cluster.gpus / groups_a_pass)
    look = cluster.gather_s(shape.parameters * shape.weight_bytes)
    return passes * (stage.trained * train_pass_s(shape, cluster) + stage.looked * look)


ENGINE_ROWS = 256  # most rows at once of an engine, which is a node with its weights spread over its GPUs (tensor parallel)


def engine_step_s(rows: int, context: float, shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> float:
    """One token of each row on one node: bytes read or operations, whichever takes longer, and two all-reduces a layer."""
    read = shape.parameters * shape.weight_bytes + rows * context * kv_bytes(shape)
    reading = read / cluster.gpus_a_node / (cluster.memory_bytes_per_s * cluster.used_of_memory)
    computing = 2 * shape.parameters * rows / cluster.gpus_a_node / (cluster.peak_flops_per_s * cluster.used_of_peak)
    return max(reading, computing) + 2 * shape.layers * cluster.all_reduce_s


def kv_bytes(shape: ModelShape = LLAMA_70B) -> int:
    """Keys and values of one token."""
    return shape.layers * 2 * shape.kv_width * shape.weight_bytes


def generate_s(stage: PaperStage, gathered: bool, shape: ModelShape = LLAMA_70B, cluster: Cluster = H100S) -> float:
    """Of all rounds. Gathered: sharded as in training, so that each step gathers all weights; else an engine a node."""
    if not stage.rows:
        return 0.0
    sampling = stage.config.sampling  # type: ignore[attr-defined]
    engines = cluster.gpus // cluster.gpus_a_node
    at_once = cluster.gpus * sampling.max_rows if gathered else engines * ENGINE_ROWS
    waves = math.ceil(stage.rows / at_once)
    context = LENGTHS.prompt_tokens + sampling.max_tokens / 2
    step = engine_step_s(math.ceil(stage.rows / waves / engines), context, shape, cluster)
    if gathered:
        step = cluster.gather_s(shape.parameters * shape.weight_bytes)
    prefill = 2 * shape.parameters * stage.rows * LENGTHS.prompt_tokens / cluster.flops_per_s
    return stage.rounds * (waves * sampling.max_tokens * step + prefill)


# Bytes that stay


def artifact_bytes(shape: ModelShape = LLAMA_70B) -> int:
    """Of a policy."""
    return shape.parameters * shape.weight_bytes


def checkpoint_bytes(models: int, shape: ModelShape = LLAMA_70B) -> int:
    """Of a stage that trains so many models: one checkpoint, without the buffer of completions."""
    return models * CHECKPOINT_BYTES * shape.parameters


def checkpoint_every_s(cost_s: float, cluster: Cluster = H100S) -> float:
    """The interval that loses least: sqrt(2 x cost x time between failures). Source: Young 1974."""
    return math.sqrt(2 * cost_s * cluster.days_between_failures * DAY_S)


def trained_models(stage: PaperStage) -> int:
    """With gradients and moments."""
    held = _models_held(stage.stage, stage.config)
    assert held is not None
    return held[0]


def reports_of(stage: PaperStage) -> int:
    """How often it reports metrics: once an optimiser update."""
    return stage.rounds * getattr(stage.config, "updates_per_iteration", 1)
