"""Laws of growth: what a cost should be at any size, fitted to three sizes and tried on a fourth.

A law is a sum of terms of the size, such as 1 and the number of parameters, with coefficients of least squares of the relative errors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.configs.base_model import BaseModelConfig, ScratchConfig
from models.configs.sft import SFTConfig
from models.memory import Lengths, ModelShape, estimate, shape_for

ALLOWED_ERROR = 0.15
MIB = 2**20

# Width and depth grow together, as in families of models. 11, 25, 49 and 85 million parameters.
SHAPES = {
    f"{hidden}x{layers}": ScratchConfig(
        hidden_size=hidden, intermediate_size=3 * hidden, layers=layers, heads=hidden // 64, kv_heads=hidden // 128, max_position=1024
    )
    for hidden, layers in ((384, 6), (512, 8), (640, 10), (768, 12))
}
# The stage whose memory is measured: two updates of 8 sequences of 128 tokens, in passes of 512 tokens.
MEMORY_CONFIG = SFTConfig(batch_size=8, epochs=2, micro_batch_tokens=512)
MEMORY_LENGTHS = Lengths(prompt_tokens=78, completion_tokens=50)

Size = Any  # a name of SHAPES, or a number


def shape(size: Size) -> ModelShape:
    """Of the scratch model of that name."""
    found = shape_for(BaseModelConfig(kind="scratch", scratch=SHAPES[size], dtype="float32"))
    assert found is not None
    return found


@dataclass(frozen=True)
class Law:
    """One quantity of one work against its size."""

    work: str
    quantity: str
    said: str  # the law in words
    unit: str
    terms: Callable[[Size], Sequence[float]]
    sizes: tuple[Size, Size, Size]
    fourth: Size

    @property
    def name(self) -> str:
        """As results are kept under it."""
        return f"{self.work}.{self.quantity}"


def line(size: Size) -> Sequence[float]:
    """A constant, and so much each."""
    return 1.0, float(size)


def layers_and_parameters(size: Size) -> Sequence[float]:
    """So much a layer, whatever its width, and so much a parameter."""
    return float(shape(size).layers), float(shape(size).parameters)


def planned_line(size: Size) -> Sequence[float]:
    """A constant, and so much each byte that the memory plan asks for."""
    return 1.0, float(planned_bytes(size))


def planned_bytes(size: Size) -> int:
    """What the plan says that the stage of ``stage_memory`` takes."""
    need = estimate("sft", MEMORY_CONFIG, shape(size), MEMORY_LENGTHS)
    assert need is not None
    return need.total


_MODELS = ("384x6", "512x8", "640x10"), "768x12"
_RUNS = (4, 8, 16), 32
_POINTS = (2_000, 4_000, 8_000), 16_000
_LINES = (250, 500, 1_000), 2_000
_MIB = (64, 128, 256), 512
_RECORDS = (50, 100, 200), 400
_ARTIFACTS = (25, 50, 100), 200
_PER_MODEL = "a layer, and a parameter"

LAWS = [
    Law("train_shapes", "cpu_s", f"so much {_PER_MODEL}, of 1,024 tokens", "s", layers_and_parameters, *_MODELS),
    Law("train_tokens", "cpu_s", "constant, and a token (512x8)", "s", line, (256, 512, 1024), 2048),
    Law("generate_shapes", "cpu_s", f"so much {_PER_MODEL}, of 32 tokens of 16 rows", "s", layers_and_parameters, *_MODELS),
    Law("generate_tokens", "cpu_s", "constant, and a token of 16 rows (512x8)", "s", line, (32, 64, 128), 256),
    Law("stage_memory", "peak_bytes", "constant, and a byte of the memory plan", "bytes", planned_line, *_MODELS),
    Law("runs", "store_bytes", "constant, and a flow run of 3 stages", "bytes", line, *_RUNS),
    Law("runs", "store_files", "constant, and a flow run", "files", line, *_RUNS),
    Law("runs", "mlflow_bytes", "constant, and a flow run", "bytes", line, *_RUNS),
    Law("runs", "mlflow_rows", "constant, and a flow run", "rows", line, *_RUNS),
    Law("runs", "prefect_bytes", "constant, and a flow run", "bytes", line, *_RUNS),
    Law("runs", "prefect_rows", "constant, and a flow run", "rows", line, *_RUNS),
    Law("log_lines", "prefect_bytes", "constant, and a line of a run's log", "bytes", line, *_LINES),
    Law("log_lines", "prefect_rows", "constant, and a line of a run's log", "rows", line, *_LINES),
    Law("points", "mlflow_bytes", "constant, and a point of a metric", "bytes", line, *_POINTS),
    Law("points", "mlflow_rows", "constant, and a point", "rows", line, *_POINTS),
    Law("points", "cpu_s", "constant, and a point delivered", "s", line, *_POINTS),
    Law("digests", "put_cpu_s", "constant, and a MiB stored", "s", line, *_MIB),
    Law("digests", "verify_cpu_s", "constant, and a MiB verified at first use", "s", line, *_MIB),
    Law("records", "cpu_s", "constant, and a record of a run that is read", "s", line, *_RECORDS),
    Law("artifacts", "cpu_s", "constant, and an artifact of 64 KiB verified", "s", line, *_ARTIFACTS),
]


def fit(law: Law, values: Sequence[float]) -> list[float]:
    """Coefficients: least squares of relative errors, so that the largest size does not decide alone."""
    rows, target = np.array([law.terms(size) for size in law.sizes], dtype=float), np.array(values, dtype=float)
    scale = np.abs(rows).max(axis=0)  # bytes and parameters beside 1
    found, *_ = np.linalg.lstsq(rows / scale / target[:, None], np.ones(len(target)), rcond=None)
    return [float(value) for value in found / scale]


def predict(law: Law, coefficients: Sequence[float], size: Size) -> float:
    """What the law says of a size."""
    return float(np.dot(law.terms(size), coefficients))
