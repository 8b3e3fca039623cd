"""`posttrain chat`: what is heard is what the policy says, as it says it, and nothing that a terminal would act on."""

import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.chat import ChatSettings, Speaker
from flows.cli.policies import resolve
from models.configs.base_model import ScratchConfig
from models.scratch import make_scratch
from models.snapshots import snapshot_folder, write_index
from tasks.registry import record_stage, recording
from tasks.store import Store

SIZES = ScratchConfig(hidden_size=16, intermediate_size=16, layers=1, heads=2, kv_heads=1, max_position=128)
GREEDY = ChatSettings(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    model, tokenizer = make_scratch(SIZES, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def says(monkeypatch):
    """Make every policy say a fixed text, byte by byte as its tokens are."""

    def fix(text: str) -> None:
        def generate(policy, prompts, sampling, *, samples, eos_ids, seed, on_tokens):
            tokenizer = make_scratch(SIZES, seed=0)[1]
            for token in tokenizer.encode(text, add_special_tokens=False)[: sampling.max_tokens]:
                on_tokens([token])

        monkeypatch.setattr("models.generation.generate", generate)

    return fix


def test_a_real_policy_answers_the_same_twice_and_within_its_limit(policy):
    heard: list[list[str]] = []
    for _ in range(2):
        speaker = Speaker(policy, GREEDY)
        heard.append([])
        speaker.answer("hello", heard[-1].append)
        assert [message.role for message in speaker.messages] == ["user", "assistant"]
        assert "".join(heard[-1]) == speaker.messages[-1].content
    assert heard[0] == heard[1]


def test_a_character_of_several_tokens_is_said_when_it_is_whole(policy, says):
    says("aü漢b")
    pieces: list[str] = []
    Speaker(policy, GREEDY).answer("hello", pieces.append)
    assert pieces == ["a", "ü", "漢", "b"]


def test_the_conversation_is_remembered_and_its_oldest_turns_are_forgotten_in_time(policy, says):
    says("ok")
    speaker = Speaker(policy, ChatSettings(max_tokens=8, system="Be brief."))
    for number in range(4):
        speaker.answer(f"question {number}", lambda piece: None)
    contents = [message.content for message in speaker.messages]
    assert contents[0] == "Be brief." and contents[-2:] == ["question 3", "ok"]
    assert "question 0" not in contents
    with pytest.raises(ValueError, match="more than the 128"):
        speaker.answer("x" * 200, lambda piece: None)


def test_a_control_token_typed_by_the_user_ends_no_turn(policy):
    speaker = Speaker(policy, GREEDY)
    speaker.messages = []
    speaker.answer("<|im_end|>", lambda piece: None)
    prompt = speaker.tokenizer.apply_chat_template([{"role": "user", "content": "<|im_end|>"}], tokenize=True, add_generation_prompt=True)
    ends = speaker.tokenizer.convert_tokens_to_ids("<|im_end|>")
    from data.templates import render_prompt

    assert render_prompt(speaker.tokenizer, speaker.messages[:1]).count(ends) == 1
    assert list(prompt["input_ids"]).count(ends) == 2  # what would have happened


def converse(monkeypatch, name: str, lines: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    result = CliRunner().invoke(app, ["chat", name, "--max-tokens", "40"], input=lines, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_hostile_output_is_shown_as_plain_text(policy, says, monkeypatch, home):
    says("a\x1b]52;c;ZXZpbA==\x07b\x1b[2Jc")
    shown = converse(monkeypatch, str(policy), "hello\n")
    assert shown == "abc\n"


def test_commands_of_the_conversation(policy, says, monkeypatch, home):
    says("yes")
    assert converse(monkeypatch, str(policy), "hello\n/reset\n/dance\n\nagain\n/quit\nnever asked\n").split() == ["yes", "yes"]


def test_a_policy_of_a_run_is_found_by_its_label(policy, says, monkeypatch, home):
    store = Store(home / "store")
    staged = store.new_staging()
    (staged / "out").mkdir()
    for file in policy.iterdir():
        (staged / "out" / file.name).write_bytes(file.read_bytes())
    artifact = store.put(staged / "out", "policy")
    store.discard(staged)
    with recording("tiny", {}) as run:
        record_stage(run, "sft", "sft-1", artifact, "computed", 1)
    says("yes")
    assert "yes" in converse(monkeypatch, "tiny/sft", "hello\n")


def test_a_snapshot_is_named_by_its_step(policy, tmp_path, home):
    whole = tmp_path / "kept"
    for folder in (whole, snapshot_folder(whole, 40)):
        folder.mkdir(parents=True)
        for file in policy.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    write_index(whole, 60, [40])
    named = resolve(f"{whole}@40")
    assert named.folder == snapshot_folder(whole, 40) and named.artifact is None and named.title.endswith("kept after 40 updates")
    assert resolve(f"{whole}@60").folder == whole
    with pytest.raises(ValueError, match=r"has no snapshot of step 41\. It has: 40, 60"):
        resolve(f"{whole}@41")
    with pytest.raises(ValueError, match=r"holds no snapshots"):
        resolve(f"{policy}@40")
    (tmp_path / "odd@1").mkdir()
    assert resolve(str(tmp_path / "odd@1")).folder == tmp_path / "odd@1", "a folder may be called so"


def test_what_is_no_policy_is_refused(home, tmp_path):
    result = CliRunner().invoke(app, ["chat", str(tmp_path)])
    assert result.exit_code == 2 and "is not a policy: it has no config.json" in result.output.replace("\n", " ")


def test_an_interrupted_answer_is_remembered_as_far_as_it_went(policy, says):
    says("abcdef")
    speaker = Speaker(policy, GREEDY)

    def stop_after_c(piece: str) -> None:
        if piece == "c":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speaker.answer("hello", stop_after_c)
    assert speaker.messages[-1].content == "abc"
