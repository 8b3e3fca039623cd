"""From records to groups: what is prompt, what is trained, what is too long; and the checks before the first step."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.groups import demonstration_group, pair_group
from data.packing import Group
from data.records import Message, Preference
from models.preflight import check_eos_is_trained, check_head
from models.rendering import completion_ids, drop_long, eos_ids
from models.run import Run

USER = (Message("user", "1 + 1?"),)


def text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids))


def test_a_demonstration_by_hand(tokenizer: Any):
    group = demonstration_group(tokenizer, (*USER, Message("assistant", "2")))
    assert text(tokenizer, group.prompt) == "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert text(tokenizer, group.completions[0]) == "2<|im_end|>"
    assert group.scored == [[True, True]]


def test_of_several_turns_only_the_assistants_are_trained(tokenizer: Any):
    messages = (*USER, Message("assistant", "2"), Message("user", "+ 1?"), Message("assistant", "3"))
    group = demonstration_group(tokenizer, messages)
    assert text(tokenizer, group.prompt).endswith("<|im_start|>assistant\n") and "+ 1?" in text(tokenizer, group.completions[0])
    assert group.scored is not None
    trained = [token for token, scored in zip(group.completions[0], group.scored[0], strict=True) if scored]
    assert text(tokenizer, trained) == "2<|im_end|>3<|im_end|>"
    assert group.scored[0][0] and group.scored[0][-1], "the group begins and ends with what is trained"


def test_a_pair_shares_its_prompt(tokenizer: Any):
    group = pair_group(tokenizer, Preference("c", "toy", USER, "good", "bad"))
    assert text(tokenizer, group.prompt).endswith("<|im_start|>assistant\n")
    assert [text(tokenizer, c) for c in group.completions] == ["good<|im_end|>", "bad<|im_end|>"], "chosen first"
    assert list(group.completions[0]) == completion_ids(tokenizer, USER, "good")


def test_long_groups_are_left_out_and_counted(run: Run, capsys: pytest.CaptureFixture[str]):
    groups = [Group([1] * 3, [[1] * n]) for n in (1, 2, 9)]
    assert drop_long(groups, 5, run) == [0, 1]
    assert "1 of 3 examples are longer than 5 tokens and are left out" in capsys.readouterr().out
    assert drop_long(groups, 12, run) == [0, 1, 2] and capsys.readouterr().out == ""


@pytest.mark.parametrize("groups", [[], [Group([1] * 9, [[1]])]])
def test_nothing_left_is_an_error(run: Run, groups: list[Group]):
    with pytest.raises(ValueError, match=rf"all {len(groups)} examples are longer than max_tokens 5, or there is none"):
        drop_long(groups, 5, run)


@pytest.mark.parametrize(("named", "ids"), [(7, [2, 7]), ([7, 2, 9], [2, 7, 9]), (None, [2])])
def test_ends_are_those_of_the_tokenizer_and_of_the_generation_settings(tmp_path: Path, tokenizer: Any, named: Any, ids: list[int]):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    assert eos_ids(tmp_path, tokenizer) == ids
    assert eos_ids(tmp_path / "nothing", tokenizer) == [2]


def test_a_policy_without_an_end_is_refused(tmp_path: Path):
    class Endless:
        eos_token_id = None

    with pytest.raises(ValueError, match="names no end-of-turn token: set eos_token"):
        eos_ids(tmp_path, Endless())  # type: ignore[arg-type]


def test_an_end_that_is_never_trained_is_refused():
    check_eos_is_trained([Group([1], [[5, 6]]), Group([1], [[5, 2]])], [2])
    with pytest.raises(ValueError, match=r"none of 2 demonstrations ends in an end-of-turn token \(\[2, 9\]\): .* would never stop"):
        check_eos_is_trained([Group([1], [[2, 5]]), Group([1], [[5, 6]])], [2, 9])


def test_a_head_that_is_not_the_saved_one_is_noticed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The probe compares our log-probabilities with those of transformers' own forward pass."""
    shutil.copytree(base, tmp_path / "policy")
    check_head(tmp_path / "policy")
    from models import preflight

    real = preflight.token_logps
    monkeypatch.setattr(preflight, "token_logps", lambda policy, packed: tuple(1.01 * x for x in real(policy, packed)))
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported"):
        check_head(tmp_path / "policy")
