"""The folder mlflow/: the contract of metric names holds in the code, and the server does not open itself to others."""

import ast
import fnmatch
import re
from dataclasses import asdict
from pathlib import Path

from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_metric_name

from data.measures import Measure, Suite
from data.measures import metrics_of as suite_metrics
from models.behaviour import metrics_of as behaviour_metrics
from models.policy_metrics import policy_metrics
from models.reward_evaluation import metrics_of as reward_metrics

ROOT = Path(__file__).resolve().parents[3]
CONTRACT = ROOT / "mlflow" / "metrics.md"
NAME = re.compile(r"[a-z_*]+/[a-z0-9_*]+")


def contract() -> list[str]:
    rows = [line.split("|")[1] for line in CONTRACT.read_text().splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def texts(tree: ast.AST) -> list[str]:
    """String constants, and f-strings with a * for what is filled in."""
    found, inner = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inner |= {id(part) for part in node.values}
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            found.append(node.value)
    return found


def reported(source: str, groups: set[str]) -> set[str]:
    """Metric names in a source file: texts of the form group/name, of a group in the contract or of any."""
    names = {text for text in texts(ast.parse(source)) if NAME.fullmatch(text)}
    return {name for name in names if name.split("/")[0] in groups | {"*"}}


def in_code() -> dict[str, str]:
    """Name -> the file that reports it."""
    groups = {name.split("/")[0] for name in contract()}
    found = {}
    for folder in ("models", "data"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= dict.fromkeys(reported(path.read_text(), groups), path.relative_to(ROOT).as_posix())
    return found


def test_every_reported_metric_is_in_the_contract():
    listed = contract()
    missing = {name: path for name, path in in_code().items() if not fnmatch.filter(listed, name)}
    assert missing == {}, f"add these to {CONTRACT.name}, with their unit"


def test_every_metric_of_the_contract_is_reported():
    patterns = in_code()
    assert [name for name in contract() if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)] == []


def test_the_contract_names_each_metric_once_and_says_what_it_is():
    names = contract()
    assert len(names) == len(set(names)) > 30
    assert all(NAME.fullmatch(name) for name in names)
    assert not [line for line in CONTRACT.read_text().splitlines() if line.startswith("| `") and not line.split("|")[3].strip()]


def test_the_search_for_names_finds_them():
    source = 'm = {"train/loss": 1, f"{group}/grad_norm": 2, "train/Not one": 3, "store/keys": 4}\nm[f"train/kl_{x}"] = 5'
    assert reported(source, {"train"}) == {"train/loss", "*/grad_norm", "train/kl_*"}


# Names with what was measured in them

HOSTILE = [
    "accuracy/task=a b",
    "accuracy/source=/tmp/../x (1).jsonl",
    "acc@8/kind=n:x",
    "p=0.5|<b>",
    "x" * 400,
    "/../",
    "a\n",
    "über=größe",
]


def every_name() -> dict[str, set[str]]:
    """The metrics of the same measures from everything that reports measures, without what stands before a measure's name."""
    measures = [Measure(name, 0.5, 0.25, 0.75) for name in HOSTILE]
    plain = [asdict(one) for one in measures]
    told = {"measures": plain, "findings": []}
    suites = [{"suite": "s", "measures": [{"name": one["name"], "policies": {"p": one}} for one in plain]}]
    compared = policy_metrics({"rows": [], "suites": suites, "behaviour": {"policies": {"p": told}}})["p"]
    return {
        "suite/": set(suite_metrics(Suite("s", "verifiable", measures))),
        "reward_evaluation/": set(reward_metrics(measures)),
        "behaviour/dpo _sigmoid_ a:b_c/": set(behaviour_metrics({"dpo [sigmoid] a=b/c": told})),
        "suite/s/": {name for name in compared if name.startswith("suite/")},
        "behaviour/": {name for name in compared if name.startswith("behaviour/")},
    }


def test_every_name_is_one_that_the_server_takes():
    for names in every_name().values():
        for name in names:
            _validate_metric_name(name)
            assert len(name) <= MAX_ENTITY_KEY_LENGTH
            assert re.fullmatch(r"[\w\-. :/]+", name)


def test_a_measure_is_called_the_same_wherever_it_is_reported():
    """Names that are too long end in a digest of the whole, and findings are no measures."""
    own = {
        prefix: {name.removeprefix(prefix) for name in names if "xxx" not in name and not name.endswith(("hacks", "warnings"))}
        for prefix, names in every_name().items()
    }
    assert len(own["suite/"]) == 3 * (len(HOSTILE) - 1)
    assert all(names == own["suite/"] for names in own.values())


def test_the_folder_holds_no_python():
    assert list((ROOT / "mlflow").rglob("*.py")) == []
