"""The benchmark itself: laps are counted and compared as they should be, and both sides meet the same work. Nothing is timed here."""

import importlib.util
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.groups import demonstration_group, pair_group
from data.templates import load_tokenizer, render_prompt
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from models.heads import new_scalar
from models.loading import load_policy
from models.rendering import eos_ids
from models.run import Run
from models.scratch import CHATML
from models.training.dpo import PreferenceOptimisation
from models.training.grpo import GRPO
from models.training.imitation import Imitation
from models.training.pairs import Pairs
from models.training.reward_model import BradleyTerry
from tests.bench import scaling
from tests.bench.__main__ import main, parse
from tests.bench.drive import Result, Setting, Side
from tests.bench.peers import TAGS, in_our_order, real_lengths
from tests.bench.report import Count, achieved, comparison_table, matrix_parameters, model_flops, parameters_of
from tests.bench.shapes import SHAPES, random_model
from tests.bench.work import SEED, WORKS, Work, Writer

FAKE_SIDE = """
import os, sys, time
from tests.bench.gate import Gate

print("a library talks before the gate is up", file=sys.stderr)
gate = Gate()
gate.settings = {"batch": 3}
print("a library talks to standard output")
os.system("echo and so does its child")
done = 0
while True:
    case = gate.lap(tokens=10 * done)
    done += 1
    if case == "die":
        sys.exit("out of luck")
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer has some hundred words of one token each."""
    folder = tmp_path_factory.mktemp("words")
    letters = "abcdefghij"
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant", "Ċ"]
    known += [f"Ġ{a}{b}{a}{b}" for a in letters for b in letters]
    known += [word[1:] for word in known if word[0] == "Ġ"]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known[:3]])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=known[1], eos_token=known[2], pad_token=known[0], chat_template=CHATML
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(known)}
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2, bos_token_id=1, pad_token_id=0)).save_pretrained(folder)
    return folder


def test_a_shape_has_the_widths_asked_for_and_the_parents_tokenizer(words: Path, tmp_path: Path):
    """1.5b by hand: 28 x (2 x 1536^2 + 2 x 1536 x 256 + 3 x 1536 x 8960 + 2 x 1536) + 1536 (the last norm) + V x 1536."""
    block = 2 * 1536**2 + 2 * 1536 * 256 + 3 * 1536 * 8960 + 2 * 1536
    with torch.device("meta"):
        whole = LlamaForCausalLM(LlamaConfig(**SHAPES["1.5b"], vocab_size=49_152, tie_word_embeddings=True))
    assert whole.num_parameters() == 28 * block + 1536 + 49_152 * 1536 == 1_385_780_736
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = random_model(SHAPES["1.5b"] | sizes, words, tmp_path / "shape")
    model = load_policy(folder)
    assert (model.config.hidden_size, model.config.num_key_value_heads, model.dtype) == (32, 2, torch.bfloat16)
    assert load_tokenizer(folder).get_vocab() == load_tokenizer(words).get_vocab()
    assert eos_ids(folder, load_tokenizer(folder)) == eos_ids(words, load_tokenizer(words))


# The gate


@pytest.fixture
def side(tmp_path: Path) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    side = Side([sys.executable, "-c", FAKE_SIDE], tmp_path / "log.txt", environment)
    yield side
    side.close()


def test_a_side_runs_a_lap_for_each_go(side: Side):
    laps = [side.lap() for _ in range(3)]
    assert side.settings == {"batch": 3}
    assert [lap["work"] for lap in laps] == [{"tokens": 10}, {"tokens": 20}, {"tokens": 30}]
    assert all(lap["seconds"] >= 0.02 and lap["peak_bytes"] > 2**20 for lap in laps)


def test_what_libraries_print_is_no_answer(side: Side):
    side.lap()
    log = side.log.read_text()
    assert "talks before" in log and "standard output" in log and "so does its child" in log


def test_a_side_that_ends_says_why(side: Side):
    side.lap("a case")
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1; .*out of luck"):
        side.lap("die")
    with pytest.raises(RuntimeError, match="out of luck"):
        side.lap()


def test_a_side_leaves_when_the_driver_does(side: Side):
    assert side.process.stdin is not None
    side.process.stdin.close()
    assert side.process.wait(timeout=20) == 0
    side.process.stdin = None


def test_the_peer_gets_our_environment_or_none_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    for kind in ("ours", "peer"):
        same, plain = (Setting(peer_environment=e, ppo_path="/extra").environment(kind, "ppo") for e in ("same", "plain"))
        assert same["GOMP_SPINCOUNT"] == "2000" and "GLIBC_TUNABLES" in same
        assert ("GOMP_SPINCOUNT" in plain, "GLIBC_TUNABLES" in plain) == ((True, True) if kind == "ours" else (False, False))
        assert same["OMP_NUM_THREADS"] == plain["OMP_NUM_THREADS"] == same["POSTTRAIN_THREADS"]
        assert ("/extra" in plain["PYTHONPATH"]) == (kind == "peer")
    assert "/extra" not in Setting(ppo_path="/extra").environment("peer", "grpo")["PYTHONPATH"]


# Arithmetic, by hand


def lap(seconds: float, tokens: float, gib: float = 1.0) -> dict[str, Any]:
    return {"seconds": seconds, "work": {"tokens": tokens, "completion_tokens": 5.0}, "peak_bytes": gib * 2**30}


def test_ratios_by_hand():
    """Ours 100, 200, 50 tokens/s, the peer 50, 50, 100: ratios 2, 4, 1/2, of which 2 is the median."""
    ours = [lap(1, 100), lap(0.5, 100, 3), lap(2, 100)]
    peer = [lap(2, 100, 4), lap(1, 50, 6), lap(0.5, 50)]
    result = Result("sft", ours, peer, ours_flops=[10, 10, 10], peer_flops=[10, 5, 5])
    found = result.summary()
    assert (found["ours_per_s"], found["peer_per_s"]) == (100, 50)
    assert (found["ratio"], found["ratio_low"], found["ratio_high"]) == (2, 0.5, 4)
    assert (found["ours_peak_gib"], found["peer_peak_gib"], found["memory_ratio"]) == (3, 6, 0.5)
    assert (found["ours_flops_per_s"], found["peer_flops_per_s"]) == (10, 5)
    row = comparison_table([found], None).splitlines()[-1]
    assert row == "| sft | 100 tokens/s, 1e-08 GFLOP/s | 50 tokens/s, 5e-09 GFLOP/s | 2.00 (0.50 to 4.00) | 3.00 / 6.00 | 0.50 |"


@pytest.mark.parametrize(("name", "rate"), [("sft", 50.0), ("dpo", 4.0), ("grpo", 0.5)])
def test_a_lap_counts_in_the_unit_of_its_work(name: str, rate: float):
    assert Result(name).rates([lap(2, 100)]) == [rate]


def test_model_flops_by_hand(words: Path):
    """Tied to the head an embedding is multiplied with once, else only looked up."""
    assert model_flops(10, 3, 4) == 6 * 10 * 3 + 2 * 10 * 4
    policy = load_policy(words)
    total, embedding = sum(p.numel() for p in policy.parameters()), policy.get_input_embeddings().weight.numel()
    assert not policy.config.tie_word_embeddings
    assert matrix_parameters(policy) == parameters_of(words) == total - embedding
    head = torch.nn.Linear(1, 1, bias=False)
    head.weight = policy.get_input_embeddings().weight
    policy.set_output_embeddings(head)
    assert matrix_parameters(policy) == sum(p.numel() for p in policy.parameters())


def test_flops_of_a_lap_are_of_whole_real_sequences(words: Path):
    tokenizer, n = load_tokenizer(words), parameters_of(words)
    work, count = WORKS["dpo"], Count("dpo", words)
    met = in_our_order(Writer(words).preferences(work), work, TAGS["dpo"])[work.batch : 2 * work.batch]
    groups = [pair_group(tokenizer, record) for record in met]
    tokens = sum(2 * len(g.prompt) + sum(map(len, g.completions)) for g in groups)
    assert count.flops(1, {}) == (6 + 2) * n * tokens
    work, count = WORKS["ppo"], Count("ppo", words)
    met = in_our_order(Writer(words).prompts(work), work, TAGS["ppo"])[: work.batch]
    asked = sum(len(render_prompt(tokenizer, record.messages)) for record in met)
    assert count.flops(0, {"completion_tokens": 7.0}) == pytest.approx((2 * 6 + 4 * 2) * n * (asked + 32 * 7))


def test_utilisation_is_shown_where_the_peak_is_known():
    assert achieved(1.5e11, None) == "150 GFLOP/s"
    assert achieved(2e14, 1e15) == "200 TFLOP/s (20.0%)"


def test_tokens_are_counted_up_to_the_end_of_a_row():
    rows = torch.tensor([[5, 6, 2, 0, 0], [5, 6, 7, 8, 9], [2, 2, 2, 2, 2], [5, 3, 2, 5, 5]])
    assert real_lengths(rows, [2]) == [3, 5, 1, 3]
    assert real_lengths(rows, [2, 3]) == [3, 5, 1, 2]


# The command line


def test_an_unknown_work_is_refused(capsys: pytest.CaptureFixture[str]):
    for arguments in (["sft", "nonsense"], ["scaling", "--scaling-cases", "nonsense"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "no such work: nonsense; there are sft" in capsys.readouterr().err


def test_nothing_named_is_everything():
    assert parse([]).works == [*WORKS, "scaling"]
    assert parse(["sft"]).works == ["sft"]


# The work


def test_texts_have_the_wanted_lengths(words: Path):
    tokenizer, writer = load_tokenizer(words), Writer(words)
    assert len(writer.words) == 100
    lengths = [len(tokenizer(writer.text(70), add_special_tokens=False)["input_ids"]) for _ in range(800)]
    assert statistics.median(lengths) == pytest.approx(70, rel=0.08)
    assert min(lengths) >= 4 and max(lengths) > 2 * 70, "spread as in real sets"
    assert {len(tokenizer(writer.text(58, 0.0), add_special_tokens=False)["input_ids"]) for _ in range(20)} == {58}


def test_texts_are_the_same_for_every_process(words: Path):
    work = WORKS["dpo"]
    assert Writer(words).preferences(work) == Writer(words).preferences(work)
    assert Writer(words, seed=1).preferences(work) != Writer(words).preferences(work)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, tmp_path, "key")


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "grpo"])
def test_both_sides_meet_the_same_records_in_the_same_order(words: Path, run: Run, name: str):
    """Through the loops' own batches: a renamed seed of the order would show."""
    work, writer, tokenizer = WORKS[name], Writer(words), load_tokenizer(words)
    small = Work(**{**vars(work), "batch": 4})
    if name == "sft":
        records = writer.demonstrations(small)[:40]
        groups = [demonstration_group(tokenizer, r.messages) for r in records]
        algorithm: Any = Imitation(load_policy(words), groups, SFTConfig(batch_size=4), SEED, 1.0)
        met = [i for update in range(3) for batch in algorithm.batches(update) for i in batch.packed.input_ids_N.tolist()]
        theirs = [demonstration_group(tokenizer, r.messages) for r in in_our_order(records, small, TAGS[name])[:12]]
        assert met == [i for g in theirs for i in (*g.prompt, *g.completions[0])]
    elif name == "grpo":
        records = writer.prompts(small)[:40]
        config = GRPOConfig(prompts_per_iteration=4)
        algorithm = GRPO(load_policy(words), records, tokenizer, None, [2], config, SEED, run)  # type: ignore[arg-type]
        algorithm.draw = lambda chosen, *_: chosen  # type: ignore[method-assign]
        algorithm.config = config.model_copy(update={"dynamic_sampling_rounds": 0})
        met = [records[i].id for iteration in range(3) for i in algorithm.collect(iteration)]
        assert met == [r.id for r in in_our_order(records, small, TAGS[name])[:12]]
    else:
        records = writer.preferences(small)[:40]
        pairs = Pairs([pair_group(tokenizer, r) for r in records], torch.zeros(40), ["bench"] * 40)
        if name == "dpo":
            algorithm = PreferenceOptimisation(load_policy(words), pairs, DPOConfig(batch_size=4), SEED, run)
        else:
            algorithm = BradleyTerry(new_scalar(words, SEED), pairs, RewardModelConfig(batch_size=4), SEED, run)
        met = [int(i) for update in range(3) for batch in algorithm.batches(update) for i in batch.index_P]
        assert [records[i].id for i in met] == [r.id for r in in_our_order(records, small, TAGS[name])[:12]]


# Scaling


def test_scaling_by_hand():
    """Batches at 100, 200 and 150 tokens/s: half, all and three quarters of the best."""
    assert [(c.rows, c.tokens) for c in scaling.cases(8192).values()] == [
        *((rows, 128) for rows in (8, 32, 128)),
        *((64, 128), (16, 512), (4, 2048)),
        *((rows, 64) for rows in (8, 32, 128)),
    ]
    laps = {"batch-8": [lap(1, 100), lap(1, 90), lap(1, 110)], "batch-32": [lap(1, 200)], "batch-128": [lap(2, 300)]}
    laps["length-128"] = [lap(1, 7)]
    rows = scaling.summarise({"update_tokens": 8192, "laps": laps, "parameters": 10})
    assert [r["share_of_best"] for r in rows] == [0.5, 1.0, 0.75, 1.0], "each group has a best of its own"
    assert (rows[0]["low"], rows[0]["tokens_per_s"], rows[0]["high"]) == (90, 100, 110)
    assert rows[0]["flops_per_s"] == 6 * 10 * 100
    assert "| train, 8 x 128 tokens | 100 (90 to 110) | 0.50 | 6e-06 GFLOP/s |" in scaling.scaling_table(rows, None)


def test_generated_tokens_carry_their_share_of_the_prompt():
    rows = scaling.summarise({"update_tokens": 8192, "laps": {"generate-8": [lap(1, 64)]}, "parameters": 10})
    assert rows[0]["flops_per_s"] == pytest.approx(2 * 10 * (80 + 64))


def test_scaling_is_plotted(tmp_path: Path):
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib comes with mlflow")
    laps = {"batch-8": [lap(1, 100)], "batch-32": [lap(1, 200)], "length-512": [lap(1, 7)]}
    rows = scaling.summarise({"update_tokens": 8192, "laps": laps, "parameters": 10})
    scaling.plot(rows, "a machine", tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize("name", ["batch-8", "length-512", "generate-8"])
def test_a_lap_of_scaling_does_what_its_name_says(words: Path, run: Run, name: str):
    case = scaling.cases(2048)[name]
    scales = scaling.Scales(words, run)
    before = [p.clone() for p in scales.policy.parameters()]
    scales.prepare(case)
    done = scales.lap(case)
    assert done == pytest.approx(case.rows * case.tokens, rel=0.05)
    moved = any(not torch.equal(a, b) for a, b in zip(before, scales.policy.parameters(), strict=True))
    assert moved == (case.group != "generate")
