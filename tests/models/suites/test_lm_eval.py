"""lm-eval through our sampler and log-probabilities: as its own HFLM, on tasks and data of our own, offline."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.measures import read_suite
from models.configs.lm_eval import LMEvalConfig
from models.configs.sampling import SamplingConfig
from models.generation import generate
from models.suites import lm_eval as suite_module
from models.suites.lm_eval import measure

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "Q: {{{{q}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
{more}
"""
WRITING = """
task: toy_writing
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
READING = """
task: toy_reading
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{q}}}}"
metric_list:
  - {{metric: bits_per_byte}}
metadata: {{version: 1.0}}
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three tasks and their rows."""
    made = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"What is {i}?", "choices": ["one", "two two", "3"], "gold": i % 3} for i in range(6)]
    data = made / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (made / "choices.yaml").write_text(CHOICES.format(name="toy_choices", data=data, more=""))
    (made / "unsafe.yaml").write_text(CHOICES.format(name="toy_unsafe", data=data, more="unsafe_code: true"))
    (made / "fetched.yaml").write_text(CHOICES.format(name="toy_fetched", data=data, more="").replace("metric: acc,", "metric: seqeval,"))
    (made / "writing.yaml").write_text(WRITING.format(data=data))
    (made / "reading.yaml").write_text(READING.format(data=data))
    return made


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")


def config_of(folder: Path, *tasks: str, **fields) -> LMEvalConfig:
    return LMEvalConfig(tasks=list(tasks), include_path=str(folder), resamples=100, **fields)


@pytest.fixture
def hflm(base: Path):
    """lm-eval's own model over the same weights, as transformers runs them."""
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto").eval()
    longest = model.config.max_position_embeddings
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(base), batch_size=1, max_length=longest)


@pytest.fixture
def ours(base: Path, folder: Path, run):
    from models.suites.lm_eval_policy import PolicyLM

    return PolicyLM(base, config_of(folder, "toy_choices", chunk_requests=3), 0, run)


def requests(kind: str, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_eval(ours, hflm):
    pairs = [("A question ", "x"), ("A question ", "yes, it is"), ("Another", " no"), ("", "from nothing"), ("é ", "ü")]
    pairs += [("long " * 80, "end")]
    found, expected = ours.loglikelihood(requests("loglikelihood", *pairs)), hflm.loglikelihood(requests("loglikelihood", *pairs))
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_is_found(ours):
    """What the policy writes itself is greedy, and is not with one token changed, wherever that stands."""
    context = ours.tok_encode("Say")
    (row,) = generate(ours.policy, [context], SamplingConfig(temperature=0.0, max_tokens=4), samples=1, eos_ids=[], seed=0)
    written = row[0].tokens
    others = [[*written[:i], (token + 1) % 256, *written[i + 1 :]] for i, token in enumerate(written)]
    assert [greedy for _, greedy in ours._scored([(context, own) for own in (written, *others, written[:2], [])])] == [
        *(True, False, False, False, False, True, True)
    ]


def test_whole_texts_are_those_of_lm_eval(ours, hflm):
    texts = [("short",), ("a text that is longer than what the policy reads at once. " * 8,), ("",)]
    kind = "loglikelihood_rolling"
    found = ours.loglikelihood_rolling(requests(kind, *texts))
    assert found == pytest.approx([*hflm.loglikelihood_rolling(requests(kind, *texts[:2])), 0.0], abs=2e-3, rel=1e-6)


def test_answers_are_those_of_lm_eval(ours, hflm):
    asked = [(text, {"until": ["e"], "max_gen_toks": 10}) for text in ("What?", "Why then", "No")]
    asked += [("X", {"until": "\n", "max_gen_toks": 4})]
    found = ours.generate_until(requests("generate_until", *asked))
    assert found == hflm.generate_until(requests("generate_until", *asked)) and not any("e" in text for text in found[:3])


def test_a_stop_text_ends_the_row(ours, monkeypatch):
    """What follows is never sampled: the row is over one step later."""
    from models.suites import lm_eval_policy

    lengths, generate = [], lm_eval_policy.generate

    def counted(*arguments, **keywords):
        rows = generate(*arguments, **keywords)
        lengths.extend(len(row[0].tokens) for row in rows)
        return rows

    monkeypatch.setattr(lm_eval_policy, "generate", counted)
    whole = ours.generate_until(requests("generate_until", ("What?", {"until": [], "max_gen_toks": 30})))[0]
    stop = whole[5:7]
    (cut,) = ours.generate_until(requests("generate_until", ("What?", {"until": [stop], "max_gen_toks": 30})))
    assert cut == whole.split(stop)[0] and lengths[1] < lengths[0]


def test_what_the_sampler_does_not_do_is_refused(ours):
    with pytest.raises(ValueError, match=r"asks for \{'num_beams': 4\}"):
        ours.generate_until(requests("generate_until", ("X", {"until": [], "num_beams": 4})))
    with pytest.raises(ValueError, match="wants answers of 4000 tokens"):
        ours.generate_until(requests("generate_until", ("X", {"until": [], "max_gen_toks": 4000})))
    with pytest.raises(ValueError, match="longer than the policy reads"):
        ours.loglikelihood(requests("loglikelihood", ("X", "y" * 2000)))


def test_the_stage_on_tasks_of_our_own(base, folder, run, journal, hflm):
    """The numbers are those of lm-eval over its own model."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = ["toy_choices", "toy_writing", "toy_reading"]
    meta = measure(config_of(folder, *names), policy=base, seed=0, run=run)
    suite = read_suite(run.out)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    expected = simple_evaluate(hflm, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    found = {each.name: each for each in suite.measures}
    assert found["toy_choices/acc"].mean == pytest.approx(expected["toy_choices"]["acc,none"])
    assert found["toy_writing/exact_match"].mean == expected["toy_writing"]["exact_match,none"]
    bits = found["toy_reading/bits_per_byte"]
    assert bits.mean == pytest.approx(expected["toy_reading"]["bits_per_byte,none"], rel=1e-4)
    assert bits.low <= bits.mean <= bits.high and not bits.values and bits.better == "lower"
    assert set(found["toy_choices/acc"].values) == {f"toy_choices/{i}" for i in range(6)}
    assert meta["items"] == len(suite.items) == 18
    ((_, metrics),) = journal(run)
    assert metrics["suite/toy_choices/acc"] == found["toy_choices/acc"].mean


def test_limit_and_examples(base, folder, run):
    measure(config_of(folder, "toy_choices", limit=2, few_shot=0), policy=base, seed=0, run=run)
    assert len(read_suite(run.out).items) == 2


def test_a_chat_template_is_used(base, folder, run):
    measure(config_of(folder, "toy_choices", chat_template=True, system_prompt="Be brief.", limit=1), policy=base, seed=0, run=run)
    asked = read_suite(run.out).items[0]["prompt"]
    assert "Be brief." in asked and asked != "Q: What is 0?\nA:"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("toy_choice", "knows no task 'toy_choice'; near are toy_choices"),
        ("toy_unsafe", "runs code that the policy writes"),
        ("toy_fetched", r"uses the metrics \['seqeval'\], which are code on a hub"),
    ],
)
def test_what_is_not_run_is_said(base, folder, run, task, message, monkeypatch):
    from lm_eval.tasks import TaskManager

    class Local(TaskManager):
        def __init__(self, include_path, include_defaults=True):
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Local)  # the index of all of lm-eval's tasks takes seconds
    with pytest.raises(ValueError, match=message):
        measure(config_of(folder, task), policy=base, seed=0, run=run)


def test_without_the_extra_the_command_is_named(base, folder, run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(suite_module.importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(ValueError, match=r"pip install -c constraints\.txt -e '\.\[lm-eval\]'"):
        measure(config_of(folder, "toy_choices"), policy=base, seed=0, run=run)


def test_the_folder_is_part_of_the_key(folder, tmp_path):
    (tmp_path / "a.yaml").write_text("task: a")
    before = config_of(tmp_path, "a").cache_extra()
    (tmp_path / "a.yaml").write_text("task: b")
    assert before.keys() == {"include_path.a.yaml"} and config_of(tmp_path, "a").cache_extra() != before


def test_a_folder_that_is_none_is_refused(base, run, tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        measure(config_of(tmp_path / "none", "a"), policy=base, seed=0, run=run)


def test_a_second_attempt_takes_over_what_was_scored_and_written(base, folder, new_run):
    config, run = config_of(folder, "toy_choices", "toy_writing", chunk_requests=4), new_run()
    measure(config, policy=base, seed=0, run=run)
    whole = (run.out / "suite.json").read_text()
    kept = sorted(path.name for path in run.checkpoints.glob("*-0*.json"))
    assert len([name for name in kept if name.startswith("loglikelihood")]) == 5 and len(kept) == 7
    for name in (kept[1], kept[-1]):
        (run.checkpoints / name).unlink()
    measure(config, policy=base, seed=0, run=new_run())
    assert (run.out / "suite.json").read_text() == whole
