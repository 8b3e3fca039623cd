import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from data.configs import CurateConfig, SourceConfig

ROOT = Path(__file__).resolve().parents[2]


def test_every_field_is_described():
    for config in (SourceConfig, CurateConfig):
        assert all(field.description for field in config.model_fields.values())
        assert len(config.model_fields) <= 20


def test_a_form_can_be_made_of_it():
    """The Prefect form cannot show unions: every field has one type."""
    for config in (SourceConfig, CurateConfig):
        assert "anyOf" not in str(config.model_json_schema())


def test_a_config_survives_json():
    config = CurateConfig(sources=[SourceConfig(task={"max_terms": 3}), SourceConfig(kind="file", name="x", columns={"prompt": "q"})])
    assert CurateConfig.model_validate_json(config.model_dump_json()) == config


def test_importing_it_loads_no_heavy_library():
    code = (
        "import sys, data.configs; print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'reasoning_gym') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"demonstration": "It is 4."}, r"must contain \{answer\}"),
        ({"kind": "file", "name": "x", "verifier": "reasoning_gym"}, "use math, number or exact"),
        ({"kind": "hub", "name": "x", "task": {"max_terms": 3}}, "is for kind='reasoning_gym'"),
        ({"columns": {"prompt": "q"}}, "has no columns"),
        ({"kind": "file", "name": "x", "prompt": "{expression}"}, "take columns and instruction"),
        ({"weight": 0}, "greater than 0"),
        ({"kind": "csv"}, "'reasoning_gym', 'hub' or 'file'"),
        ({"colums": {}}, "Extra inputs"),
    ],
)
def test_a_wrong_source_names_the_fault(fields, match):
    with pytest.raises(ValidationError, match=match):
        SourceConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"demonstrations": 0, "prompts": 0, "test_prompts": 0}, "every table size is 0"),
        ({"test_prompts": -1}, "test_prompts=-1.*role='test'"),
        ({"test_preferences": -1}, "test_preferences=-1.*role='test'"),
        ({"sources": []}, "at least 1 item"),
        ({"max_bad_share": 2}, "less than or equal to 1"),
        ({"prompts": -2}, "greater than or equal to -1"),
    ],
)
def test_a_wrong_config_names_the_fault(fields, match):
    with pytest.raises(ValidationError, match=match):
        CurateConfig(**fields)


def test_the_verifier_follows_the_kind():
    assert SourceConfig().verifier_name == "reasoning_gym"
    assert SourceConfig(kind="file", name="x").verifier_name == "none"
    assert SourceConfig(kind="file", name="x", verifier="math").verifier_name == "math"


def test_a_byte_of_a_data_file_changes_the_key(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}')
    config = CurateConfig(sources=[SourceConfig(), SourceConfig(kind="file", name=str(path))])
    before = config.cache_extra()
    assert len(before) == 1
    assert config.cache_extra() == before
    path.write_text('{"a": 2}')
    assert config.cache_extra() != before
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no data file.*rows.jsonl"):
        config.cache_extra()
