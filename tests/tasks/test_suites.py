"""The stages of the suites: each hands its entry what the entry takes."""

import inspect

import pytest

from models.worker import config_class, load_entry
from tasks.instructions import instructions
from tasks.multiple_choice import multiple_choice
from tasks.perplexity import perplexity
from tasks.stage import Stage
from tasks.verifiable import verifiable


@pytest.mark.parametrize("stage", [verifiable, instructions, multiple_choice, perplexity], ids=lambda stage: stage.name)
def test_a_suite_is_a_report_whose_entry_takes_its_inputs(stage: Stage):
    entry = load_entry(stage.runs, ["models"])
    taken = inspect.signature(entry).parameters
    assert stage.kind == "report" and entry.__name__ == stage.name
    assert stage.signature.parameters.keys() == taken.keys() - {"run"}
    assert stage.signature.parameters["config"].annotation == config_class(entry)
    needed = {name for name, one in stage.signature.parameters.items() if one.default is inspect.Parameter.empty}
    assert needed == {name for name, one in taken.items() if one.default is inspect.Parameter.empty} - {"run"}
