"""Stage keys: everything that matters changes them, nothing else does."""

import enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from tasks import key as key_module
from tasks.key import Project, closure, differences, digest_key, explain_miss, key_document, library_version, save_document, semantic
from tasks.store import Artifact

DATA = Artifact(kind="dataset", digest="d" * 64, size_bytes=1, n_files=1)


class Optimizer(BaseModel):
    lr: float = 1e-4
    log_every: int = Field(10, json_schema_extra={"cache": False})


class Config(BaseModel):
    optimizer: Optimizer = Optimizer()
    names: list[str] = ["a"]
    workers: int = Field(2, json_schema_extra={"cache": False})
    source: str = "x.jsonl"

    def cache_extra(self) -> dict[str, str]:
        return {"x.jsonl": "sha-1"}


def document(toy: Any, config: BaseModel | None = None, **changes: Any) -> dict[str, Any]:
    project = Project(toy.root, ("toymodels", "toytasks"), ("toymodels",))
    code = closure(["toytasks.stages", "toymodels.work"], project)
    parts = {"stage": "sft", "kind": "policy", "config": config or Config(), "inputs": {"data": DATA}, "seed": 0, "code": code} | changes
    return key_document(**parts)


def test_closure_follows_imports_inside_functions_and_not_what_is_unrelated(toy) -> None:
    sources = document(toy)["sources"]
    assert set(sources) == {f"toymodels/{name}.py" for name in ("__init__", "configs", "far", "log", "near", "report", "work")} | {
        f"toytasks/{name}.py" for name in ("__init__", "stages")
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("toymodels/far.py", "SCALE = 2", "SCALE = 3", True),
        ("toymodels/far.py", "# a comment", "# another comment", False),
        ("toymodels/far.py", '"""Scale a value."""', '"""Multiply a value.\n\n    Twice.\n    """', False),
        ("toymodels/far.py", "return value * SCALE", "return   (value\n            * SCALE)", False),
        ("toymodels/unrelated.py", "X = 1", "X = 2", False),
        ("toymodels/__init__.py", "", "X = 1\n", True),
    ],
)
def test_sources(toy, file: str, old: str, new: str, changes: bool) -> None:
    before = document(toy)
    toy.edit(file, old, new) if old else toy.write({file: new})
    after = document(toy)
    assert (digest_key(before) != digest_key(after)) is changes
    assert differences(before, after) == ([f"source {file} changed"] if changes else [])


def test_code_named_in_a_string_and_files_beside_a_module_count(toy) -> None:
    toy.write({"toymodels/losses.py": "A = 1\n", "toymodels/chat.jinja": "{{ a }}", "toymodels/other.jinja": "{{ b }}"})
    toy.edit("toymodels/near.py", "def twice", 'LOSS = "toymodels.losses:A"\nTEMPLATE = "chat.jinja"\n\n\ndef twice')
    before = document(toy)
    assert {"toymodels/losses.py", "toymodels/chat.jinja"} <= set(before["sources"])
    assert "toymodels/other.jinja" not in before["sources"]
    toy.write({"toymodels/chat.jinja": "{{ a  }}"})
    assert differences(before, document(toy)) == ["source toymodels/chat.jinja changed"]


def test_relative_imports_and_type_only_imports(toy) -> None:
    text = "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom . import near\nfrom .far import SCALE\n"
    toy.write({"toymodels/sub/__init__.py": "from ..far import SCALE\n"})
    toy.write({"toymodels/start.py": text + "if TYPE_CHECKING:\n    from toymodels import unrelated\nelse:\n    import toymodels.sub\n"})
    found = closure(["toymodels.start"], Project(toy.root, ("toymodels",), ("toymodels",))).sources
    assert set(found) == {f"toymodels/{name}.py" for name in ("__init__", "start", "near", "far", "sub/__init__")}


def test_a_file_that_cannot_be_parsed_is_named(toy) -> None:
    toy.write({"toymodels/far.py": "def broken(:\n"})
    with pytest.raises(ValueError, match=r"far\.py cannot be parsed"):
        document(toy)
    with pytest.raises(ValueError, match=r"toymodels\.absent is not a module of toymodels"):
        closure(["toymodels.absent"], Project(toy.root, ("toymodels",), ("toymodels",)))


def test_carriers_of_stages_are_not_part_of_any_key() -> None:
    carried = {name.split(".")[0] + "/" + name.split(".")[1] + ".py" for name in key_module.CARRIERS}
    found = closure(["tasks.stage", "tasks.key", "models.worker"])
    assert not carried & set(found.sources)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(optimizer=Optimizer(lr=2e-4)), ["config.optimizer.lr: 0.0001 -> 0.0002"]),
        (Config(names=["a", "b"]), ['config.names: ["a"] -> ["a", "b"]']),
        (Config(optimizer=Optimizer(log_every=99)), []),
        (Config(workers=8), []),
    ],
)
def test_config(toy, config: Config, said: list[str]) -> None:
    before, after = document(toy), document(toy, config)
    assert differences(before, after) == said
    assert (digest_key(before) != digest_key(after)) is bool(said)


def test_inputs_seed_extra_and_kind(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    before = document(toy)
    other = Artifact(kind="dataset", digest="e" * 64, size_bytes=1, n_files=1)
    assert differences(before, document(toy, inputs={"data": other})) == ["input data: dddddddddddd -> eeeeeeeeeeee"]
    assert differences(before, document(toy, inputs={"data": DATA.model_copy(update={"meta": {"rows": 1}})})) == []
    assert differences(before, document(toy, seed=1)) == ["seed: 0 -> 1"]
    assert differences(before, document(toy, kind="report")) == ['kind: "policy" -> "report"']
    monkeypatch.setattr(Config, "cache_extra", lambda self: {"x.jsonl": "sha-2"})
    assert differences(before, document(toy)) == ['config x.jsonl: "sha-1" -> "sha-2"']


def test_library_versions(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.edit("toymodels/far.py", "SCALE = 2", "import numpy\nSCALE = 2")
    before = document(toy)
    assert "numpy" in before["libraries"]
    assert "pydantic" not in before["libraries"], "it cannot change a number"
    monkeypatch.setattr(key_module, "library_version", lambda name: "99" if name == "numpy" else library_version(name))
    after = document(toy)
    assert differences(before, after) == [f"library numpy: {before['libraries']['numpy']} -> 99"]
    assert digest_key(before) != digest_key(after)


def test_library_version_by_import_name() -> None:
    assert library_version("yaml")[0].isdigit(), "PyYAML"
    assert library_version("reasoning_gym")[0].isdigit()
    assert library_version("no_such_library") == "absent"


def test_values_without_a_stable_meaning_are_refused() -> None:
    colour = enum.Enum("Colour", {"RED": "red"})
    assert semantic({"a": (1, None, colour.RED), "b": Path("x")}) == {"a": [1, None, "red"], "b": "x"}
    with pytest.raises(TypeError, match="cannot be part of a stage key"):
        semantic(object())


def test_a_miss_is_explained_by_the_most_similar_earlier_call(toy, tmp_path: Path) -> None:
    new = document(toy, seed=1)
    assert explain_miss(tmp_path, digest_key(new), new) == []
    for other in (document(toy), document(toy, Config(names=["z"]), seed=7), document(toy, stage="dpo")):
        save_document(tmp_path, digest_key(other), other)
    assert explain_miss(tmp_path, digest_key(new), new) == ["seed: 0 -> 1"]
