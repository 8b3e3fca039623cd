"""The house rules that a machine can check: layers, forbidden calls, lengths, names. Each rule is also shown to catch an offender."""

import ast
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("data", "models", "tasks", "flows")  # each may import those to its left, and itself
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
VAGUE_FILES = {"utils", "helpers", "misc", "common"}
VAGUE_SUFFIXES = ("Manager", "Handler", "Helper")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(), filename=str(path))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also those inside functions. `from a import b` counts as a.b: b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def stage_module(parts: list[str]) -> str | None:
    """The stage that a dotted path inside tasks/ belongs to, or None for what stages share."""
    return parts[1] if len(parts) > 1 and parts[0] == "tasks" and parts[1] in STAGES else None


def defines_stage(path: Path) -> bool:
    marks = [ast.unparse(mark) for function in functions(parsed(path)) for mark in function.decorator_list]
    return any(mark.startswith("stage(") for mark in marks)


def layer_faults(path: str, tree: ast.AST) -> list[str]:
    own = path.removesuffix(".py").split("/")
    faults = []
    for line, name in imported(tree):
        parts = name.split(".")
        where = f"{path}:{line} imports {name}"
        if name.startswith("."):
            faults.append(f"{where}: relative; write the whole path")
        elif parts[0] in LAYERS and LAYERS.index(parts[0]) > LAYERS.index(own[0]):
            faults.append(f"{where}: upward")
        elif own[0] == "tasks" and stage_module(parts) not in (None, own[1]):
            faults.append(f"{where}: sideways, from one stage to another")
    return faults


def library_faults(path: str, tree: ast.AST) -> list[str]:
    faults = []
    for line, name in imported(tree):
        library = name.split(".")[0]
        if library == "mlflow" and path != "tasks/tracking.py":
            faults.append(f"{path}:{line} imports mlflow: only tasks/tracking.py does")
        if library == "prefect" and path.split("/")[0] not in ("tasks", "flows"):
            faults.append(f"{path}:{line} imports prefect: only tasks/ and flows/ do")
        if library in PICKLES:
            faults.append(f"{path}:{line} imports {library}: nothing is pickled")
    return faults


def call_faults(path: str, tree: ast.AST) -> list[str]:
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"torch.load", "torch.save", "os.system", "os.popen", "eval", "exec"}:
                faults.append(f"{path}:{node.lineno} calls {called}")
            for keyword in node.keywords:
                if keyword.arg == "trust_remote_code" or (keyword.arg == "shell" and ast.unparse(keyword.value) != "False"):
                    faults.append(f"{path}:{node.lineno} passes {keyword.arg}={ast.unparse(keyword.value)}")
        if isinstance(node, ast.ExceptHandler) and is_silent(node):
            faults.append(f"{path}:{node.lineno} swallows {ast.unparse(node.type) if node.type else 'everything'}")
    return faults


def is_silent(handler: ast.ExceptHandler) -> bool:
    """True for a handler of all exceptions that does nothing at all."""
    broad = handler.type is None or ast.unparse(handler.type) in {"Exception", "BaseException"}
    return broad and all(isinstance(statement, ast.Pass | ast.Continue) for statement in handler.body)


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def length_faults(path: str, tree: ast.AST) -> list[str]:
    return [
        f"{path}:{f.lineno} {f.name} has {length(f)} lines"
        for f in functions(tree)
        if length(f) > (120 if f.name == "train" else 60)
    ]


def name_faults(path: str, tree: ast.AST) -> list[str]:
    faults = [f"{path}: a name that says nothing"] if Path(path).stem in VAGUE_FILES else []
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith(VAGUE_SUFFIXES)]
    return faults + [f"{path}:{node.lineno} class {node.name}: say what it is" for node in classes]


# Names of the stage modules; two are there for the tests of the rule itself.
STAGES = {"sft", "dpo"} | {path.stem for path in sources("tasks") if defines_stage(path)}
RULES = [layer_faults, library_faults, call_faults, length_faults, name_faults]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule):
    faults = [fault for path in sources(*LAYERS) for fault in rule(path.relative_to(ROOT).as_posix(), parsed(path))]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (layer_faults, "data/sources.py", "import models.loading"),
        (layer_faults, "models/loading.py", "def f():\n    from tasks.store import Store"),
        (layer_faults, "tasks/sft.py", "from tasks.dpo import dpo"),
        (layer_faults, "tasks/sft.py", "from tasks import dpo"),
        (layer_faults, "tasks/stage.py", "import tasks.sft"),
        (layer_faults, "flows/rlhf.py", "from . import recipes"),
        (library_faults, "tasks/sft.py", "import mlflow"),
        (library_faults, "models/loading.py", "from prefect import task"),
        (library_faults, "tasks/store.py", "import pickle"),
        (call_faults, "models/loading.py", "torch.load(path)"),
        (call_faults, "models/loading.py", "load(path, trust_remote_code=True)"),
        (call_faults, "tasks/process.py", "run(command, shell=True)"),
        (call_faults, "tasks/process.py", "try:\n    f()\nexcept Exception:\n    pass"),
        (length_faults, "models/loading.py", "def load():\n" + "    x = 1\n" * 60),
        (length_faults, "models/training/sft.py", "def train():\n" + "    x = 1\n" * 120),
        (name_faults, "data/utils.py", "x = 1"),
        (name_faults, "data/sources.py", "class SourceManager: ..."),
    ],
)
def test_each_rule_catches_an_offender(rule, path, source):
    assert rule(path, ast.parse(source))


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (layer_faults, "tasks/sft.py", "from tasks.stage import stage\nfrom models.configs.sft import SFTConfig\nimport tasks.sft"),
        (layer_faults, "flows/rlhf.py", "from tasks.sft import sft\nfrom data.configs import CurateConfig"),
        (library_faults, "tasks/tracking.py", "import mlflow"),
        (call_faults, "tasks/process.py", "run(command, shell=False)"),
    ],
)
def test_no_rule_forbids_what_is_allowed(rule, path, source):
    assert rule(path, ast.parse(source)) == []


def test_no_file_is_longer_than_500_lines():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources(*LAYERS, "tests")}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}


def test_most_functions_are_short():
    lengths = [length(function) for path in sources(*LAYERS) for function in functions(parsed(path))]
    assert statistics.median(lengths) <= 15
    assert sum(lines < 40 for lines in lengths) / len(lengths) > 0.95


@pytest.mark.parametrize("package", LAYERS)
def test_the_packages_are_those_of_this_checkout(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin == str(ROOT / package / "__init__.py")


def test_the_folder_mlflow_does_not_shadow_the_library():
    import mlflow

    assert not (ROOT / "mlflow" / "__init__.py").exists()
    assert "site-packages" in str(mlflow.__file__)
    assert hasattr(mlflow, "MlflowClient")


def test_configs_import_without_torch_or_the_libraries_around_it():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources("data", "models") if "configs" in str(path)]
    assert "data.configs" in names
    heavy = {"torch", "transformers", "prefect", "mlflow"}
    code = f"import sys\nfor name in {names!r}: __import__(name)\nprint({heavy!r} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"


def test_gitignore_does_not_hide_a_package():
    listed = subprocess.run(["git", "check-ignore", *LAYERS, "mlflow", "tests"], cwd=ROOT, capture_output=True, text=True)
    assert listed.stdout == ""
