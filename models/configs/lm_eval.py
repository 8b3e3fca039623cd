"""Settings of the suite that runs tasks of EleutherAI's lm-evaluation-harness."""

from pathlib import Path

from pydantic import Field

from data.files import sha256_of
from models.configs.base import StageConfig, operational
from models.configs.suites import NAME, NAMED, RESAMPLES


class LMEvalConfig(StageConfig):
    """Tasks of lm-eval, asked through this package's sampler and log-probabilities."""

    name: str = Field(default="lm_eval", pattern=NAME, description=NAMED)
    tasks: list[str] = Field(min_length=1, description="Names of tasks, groups or tags, such as arc_easy.")
    include_path: str = Field(
        default="",
        description="Folder with task files (YAML) of your own, which come before those of lm-eval. Python functions that they name are "
        "run: only a folder that you trust. Keep the data that they name in it too: a change elsewhere does not change the stage's key.",
    )
    limit: int = Field(default=0, ge=0, description="Documents of each task, from the first on; 0 = all.")
    few_shot: int = Field(default=-1, ge=-1, description="Examples before each document; -1 = as the task says.")
    chat_template: bool = Field(default=False, description="Put the question into the policy's chat template.")
    few_shot_as_turns: bool = Field(default=True, description="With chat_template: each example is a turn of the conversation.")
    system_prompt: str = Field(default="", description="Text before the question, or the system message; empty: none.")
    max_tokens: int = Field(default=256, ge=1, le=8192, description="Longest answer where the task does not say, in tokens.")
    max_rows: int = Field(
        default=64, ge=1, description="Answers written at once. It orders the sampling noise, so it is part of the result."
    )
    resamples: int = Field(default=2_000, ge=100, description=RESAMPLES)
    chunk_requests: int = Field(default=256, ge=1, description="Requests between two saves. It orders the sampling noise.")
    micro_batch_tokens: int = operational(8192, "Tokens of a forward pass.", ge=16)

    def cache_extra(self) -> dict[str, str]:
        """Digests of all files in the folder of tasks."""
        folder = Path(self.include_path)
        found = sorted(folder.rglob("*")) if self.include_path else []
        files = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
        return {f"include_path.{path.relative_to(folder).as_posix()}": sha256_of(path) for path in files}
