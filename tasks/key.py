"""The cache key of a stage: what its result depends on, part by part, and the digest of it.

    stage      its name and the kind of artifact
    config     the semantic fields (those declared with json_schema_extra={"cache": False} are left out), and what the config adds
               about the world in `cache_extra() -> dict[str, str]`, such as digests of local files
    inputs     kind and digest of every artifact; plain values as they are
    seed
    sources    the meaning (models/source.py) of every project file that can be imported from the stage's module and from the function
               that it runs, also from inside functions; and files beside a module that it names
    libraries  versions of the third-party packages imported anywhere in those files
    python     major.minor

The parts are kept as a JSON document, so that a miss can be explained by comparing documents.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.run import write_atomic
from models.source import tree_digest
from tasks.home import CHECKOUT
from tasks.store import Artifact

FORMAT = 1  # raise it when the document changes its meaning

# They carry stages and compute nothing: a change in one of them must not throw away every result.
CARRIERS = (
    *(f"tasks.{name}" for name in ("store", "key", "cache", "locks", "device", "stage", "plan", "process", "home", "registry", "report")),
    *(f"tasks.{name}" for name in ("tracking", "tracked", "recorder", "journal", "owner", "provenance", "ray_cluster", "ray_workers")),
    *(f"tasks.{name}" for name in ("claims", "slot", "watch", "cancellation")),
    *(f"models.{name}" for name in ("run", "worker", "ranks", "zygote", "marked", "source", "spending", "sharing", "followers")),
)
# Libraries that cannot change a number, and libraries whose numbers are made by another that our code does not import itself.
NEUTRAL = {"prefect", "mlflow", "pydantic", "typer", "rich", "vllm"}  # a sampling that means vllm puts its version into the key itself
COMPANIONS = {
    "datasets": ("pyarrow",),
    "math_verify": ("latex2sympy2_extended", "sympy"),
    "reasoning_gym": ("sympy",),
    "transformers": ("tokenizers", "jinja2"),
}

_NAMED_FILE = re.compile(r"[\w./-]+\.(json|jsonl|jinja|txt|yaml|csv|html)")


@dataclass(frozen=True)
class Project:
    """Where the code of stages lies: the root folder, its packages, and those of them that a stage's process may run."""

    root: Path = CHECKOUT
    packages: tuple[str, ...] = ("data", "models", "tasks", "flows")
    runnable: tuple[str, ...] = ("data", "models")
    carriers: tuple[str, ...] = CARRIERS

    def file(self, module: str) -> Path | None:
        """The file of a dotted module name, if it is a module of this project."""
        if module.split(".")[0] not in self.packages:
            return None
        base = self.root.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


PROJECT = Project()


@dataclass(frozen=True)
class Source:
    """One file of the project: digest of its bytes and of its meaning, and the names that it refers to."""

    raw: str
    meaning: str
    imports: frozenset[str]  # dotted names as written: "a.b.c" may be a module or something in the module a.b
    strings: frozenset[str]


@dataclass(frozen=True)
class Closure:
    """All that can be imported from some modules: relative path -> Source, and top-level names of libraries."""

    sources: Mapping[str, Source]
    libraries: frozenset[str]


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _executed(tree: ast.AST) -> Iterable[ast.AST]:
    """Every node but those that only a type checker sees."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if _is_type_checking(node):
            assert isinstance(node, ast.If)
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def _imports(node: ast.AST, package: str) -> Iterable[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=4096)
def _read(path: Path, mtime_ns: int, size: int, package: str) -> Source:
    raw = path.read_bytes()
    if path.suffix != ".py":
        digest = hashlib.sha256(raw).hexdigest()[:16]
        return Source(digest, digest, frozenset(), frozenset())
    tree = ast.parse(raw, filename=str(path))
    meaning = tree_digest(tree)  # from here on the tree has no docstrings, so that none of them names a file
    nodes = list(_executed(tree))
    imports = frozenset(name for node in nodes for name in _imports(node, package))
    strings = frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return Source(hashlib.sha256(raw).hexdigest()[:16], meaning, imports, strings)


def _source(path: Path, package: str) -> Source:
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size, package)


def _with_parents(module: str) -> list[str]:
    """a.b.c -> a, a.b, a.b.c: importing a module runs the packages above it."""
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def closure(modules: Iterable[str], project: Project = PROJECT, by_name: bool = True) -> Closure:
    """Everything in the project that importing and calling `modules` can reach.

    by_name: also modules that a string names, such as what a stage runs in its own process.

    Raises:
        ValueError: a module is not in the project, or a file cannot be parsed.
    """
    sources: dict[str, Source] = {}
    libraries: set[str] = set()
    pending = list(modules)
    for module in pending:
        if project.file(module) is None:
            raise ValueError(f"{module} is not a module of {', '.join(project.packages)} below {project.root}")
    visited: set[str] = set()
    while pending:
        name = pending.pop()
        for module in _with_parents(name):
            if module in visited or module in project.carriers:
                continue
            visited.add(module)
            path = project.file(module)
            if path is None:
                continue
            source = _project_source(path, module)
            sources[path.relative_to(project.root).as_posix()] = source
            sources.update(_named_files(source, path.parent, project))
            libraries.update(top for imported in source.imports if (top := imported.split(".")[0]) not in project.packages and top)
            pending.extend(imported for imported in source.imports if imported.split(".")[0] in project.packages)
            if by_name:
                pending.extend(named for text in source.strings if (named := _named_module(text, project)))
    return Closure(dict(sorted(sources.items())), frozenset(libraries - sys.stdlib_module_names))


def _project_source(path: Path, module: str) -> Source:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        return _source(path, package)
    except SyntaxError as error:
        raise ValueError(f"{path} cannot be parsed: {error}") from error


def _named_module(text: str, project: Project) -> str | None:
    """A string such as "models.training.sft:train" that names a module: code that is imported by name counts as imported."""
    module = text.partition(":")[0]
    is_dotted = "." in module and all(part.isidentifier() for part in module.split("."))
    return module if is_dotted and project.file(module) else None


def _named_files(source: Source, folder: Path, project: Project) -> dict[str, Source]:
    """Files beside a module that it names in a string, such as a template: they are part of the code."""
    found = {}
    for text in source.strings:
        path = folder / text
        if _NAMED_FILE.fullmatch(text) and path.is_file() and path.resolve().is_relative_to(project.root):
            found[path.resolve().relative_to(project.root).as_posix()] = _source(path.resolve(), "")
    return found


# Libraries


@lru_cache(maxsize=1024)
def library_version(name: str) -> str:
    """Version of the distribution that provides a top-level import name; "absent" if none is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        providers = _providers().get(name, [])
        return ",".join(sorted({metadata.version(provider) for provider in providers})) or "absent"


@lru_cache(maxsize=1)
def _providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()  # reads every installed distribution: only for names that differ, such as yaml


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the libraries that can change numbers, with those that they compute with."""
    wanted = set(names) - NEUTRAL
    wanted |= {companion for name in wanted for companion in COMPANIONS.get(name, ())}
    return {name: library_version(name) for name in sorted(wanted)}


# Values


def semantic(value: Any) -> Any:
    """JSON view of a value, without the fields that cannot change a result.

    Raises:
        TypeError: the value has no stable meaning; stages take configs, artifacts and plain values.
    """
    if isinstance(value, Artifact):
        return {"kind": value.kind, "digest": value.digest}
    if isinstance(value, BaseModel):
        return {name: semantic(getattr(value, name)) for name, field in type(value).model_fields.items() if _is_semantic(field)}
    if isinstance(value, Mapping):
        return {str(key): semantic(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [semantic(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of a stage key: pass a config model, an artifact or a plain value")


def _is_semantic(field: Any) -> bool:
    extra = field.json_schema_extra
    return extra.get("cache", True) is not False if isinstance(extra, dict) else True


def _extras(value: Any, path: str = "") -> dict[str, str]:
    """What configs add about the world, by the path of the sub-config that says it."""
    if not isinstance(value, BaseModel):
        return {}
    found = {}
    extra: Callable[[], Mapping[str, str]] | None = getattr(value, "cache_extra", None)
    if extra is not None:
        found = {f"{path}{key}": str(item) for key, item in extra().items()}
    for name in type(value).model_fields:
        found.update(_extras(getattr(value, name), f"{path}{name}."))
    return found


def key_document(stage: str, kind: str, config: BaseModel, inputs: Mapping[str, Any], seed: int | None, code: Closure) -> dict[str, Any]:
    """Every part of a stage key, as JSON."""
    return {
        "format": FORMAT,
        "stage": stage,
        "kind": kind,
        "config": semantic(config),
        "extra": _extras(config),
        "inputs": {name: semantic(value) for name, value in sorted(inputs.items())},
        "seed": seed,
        "sources": {path: source.meaning for path, source in code.sources.items()},
        "libraries": library_versions(code.libraries),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }


def digest_key(document: Mapping[str, Any]) -> str:
    """The stage key: the stage's name and 128 bits of the digest of the document."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{document['stage']}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


# Explaining


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict) and value and set(value) != {"kind", "digest"}:
        return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f"{path}.{key}").items()}
    return {path: value}


def _leaves(document: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """(part, path inside it) -> value. Paths of files hold dots and slashes, so they are not flattened further."""
    leaves: dict[tuple[str, str], Any] = {}
    for part, value in document.items():
        if part in ("sources", "libraries", "extra"):
            leaves.update({(part, name): item for name, item in value.items()})
        else:
            leaves.update({(part, path): leaf for path, leaf in _flat(value, part).items()})
    return leaves


def _describe(part: str, path: str, old: Any, new: Any) -> str:
    if part == "sources":
        return f"source {path} " + ("was added" if old is None else "is not used any more" if new is None else "changed")
    if part == "libraries":
        return f"library {path}: {old} -> {new}"
    if part == "inputs":
        old, new = ((item["digest"][:12] if isinstance(item, dict) and "digest" in item else item) for item in (old, new))
        return f"input {path.removeprefix('inputs.')}: {old} -> {new}"
    return f"{'config ' if part == 'extra' else ''}{path}: {json.dumps(old)} -> {json.dumps(new)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The parts in which two key documents differ, in words: "config.beta: 0.1 -> 0.2", "source models/losses/dpo.py changed"."""
    before, after = _leaves(old), _leaves(new)
    changed = sorted(leaf for leaf in before.keys() | after.keys() if before.get(leaf) != after.get(leaf))
    return [_describe(part, path, before.get((part, path)), after.get((part, path))) for part, path in changed]


def save_document(folder: Path, key: str, document: Mapping[str, Any]) -> None:
    """Keep the parts of a key for later explanations."""
    path = folder / f"{key}.json"
    if not path.exists():
        write_atomic(path, json.dumps(document, indent=1, sort_keys=True))


def load_document(folder: Path, key: str) -> dict[str, Any] | None:
    """The parts of a key that was seen before, if they can be read."""
    try:
        return json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def input_digests(document: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the inputs of a key that are artifacts, by dotted name."""
    return dict(_digests(document.get("inputs", {}), ""))


def _digests(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and set(value) == {"kind", "digest"}:
        yield name, str(value["digest"])
    elif isinstance(value, Mapping | list):
        for key, part in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _digests(part, f"{name}.{key}" if name else str(key))


def explain_miss(folder: Path, key: str, document: Mapping[str, Any]) -> list[str]:
    """What changed since the most similar earlier call of the same stage; empty if the stage was never called."""
    earlier = sorted(folder.glob(f"{document['stage']}-*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    others = [load_document(folder, path.stem) for path in earlier if path.stem != key]
    found = [differences(other, document) for other in others if other and other.get("stage") == document["stage"]]
    return min(found, key=len, default=[])
