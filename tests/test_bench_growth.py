"""The paper run and the laws of growth: sums by hand, fits that recover what they should, and a page that says what the program says."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import growth, growth_paper, growth_side
from tests.bench.growth_laws import ALLOWED_ERROR, LAWS, SHAPES, Law, fit, line, predict, shape
from tests.bench.growth_paper import H100S, LLAMA_70B, RUN, Cluster

STAGES = {stage.stage: stage for stage in RUN}


@pytest.fixture
def measured() -> dict:
    return growth.read()


# The paper run by hand


def test_the_model_is_the_published_one() -> None:
    """80 x (2 x 8192^2 + 2 x 8192 x 1024 + 3 x 8192 x 28672 + 2 x 8192) + 2 x 128256 x 8192 + 8192."""
    assert LLAMA_70B.parameters == 80 * 855_654_400 + 2 * 1_050_673_152 + 8192 == 70_553_706_496
    assert growth_paper.artifact_bytes() / 1e9 == pytest.approx(141.1, abs=0.05)
    assert growth_paper.kv_bytes() == 80 * 2 * 1024 * 2 == 327_680
    assert growth_paper.checkpoint_bytes(1) / 1e9 == pytest.approx(846.6, abs=0.1)


def test_a_trained_model_takes_18_bytes_a_parameter_over_all_gpus() -> None:
    memory = growth_paper.memory_of(STAGES["sft"])
    held = memory.trained_weights + memory.gradients + memory.optimiser
    assert held * 64 / LLAMA_70B.parameters == pytest.approx(6 + 4 + 8)
    ppo = growth_paper.memory_of(STAGES["ppo"])
    assert (ppo.trained_weights + ppo.gradients + ppo.optimiser) / held == pytest.approx(2)
    assert ppo.frozen_weights * 64 / LLAMA_70B.parameters == pytest.approx(2 * 2), "reference and reward model"
    assert memory.gathered == 2 * (2 * 855_638_016 + 1_050_673_152) + 4 * 855_638_016
    assert growth_paper.memory_of(STAGES["evaluate"]).gradients == 0


def test_activations_are_those_of_the_plan_and_fewer_when_computed_again() -> None:
    """Of a token and layer 6 x 8192 + 2 x 1024 + 3 x 28672 widths and 64 x 256 scores, at 2 bytes; computed again: 8192 widths."""
    memory, tokens = growth_paper.memory_of(STAGES["sft"]), STAGES["sft"].group_tokens
    layer = (6 * 8192 + 2 * 1024 + 3 * 28_672 + 64 * 256) * 2 * tokens
    assert tokens == 1024
    assert memory.activations - memory.recomputed == 79 * layer - 79 * 8192 * 2 * tokens
    assert memory.total <= H100S.gpu_bytes
    assert growth_paper.memory_of(STAGES["ppo"], groups=4).total_recomputed < H100S.gpu_bytes
    assert growth_paper.memory_of(STAGES["ppo"]).total > H100S.gpu_bytes > growth_paper.memory_of(STAGES["ppo"]).total_recomputed


def test_times_by_hand() -> None:
    rate = 64 * 989e12 * 0.4
    assert growth_paper.compute_s(STAGES["sft"]) == pytest.approx(8 * 70.553706496e9 * 1562 * 256 * 1024 / rate)
    assert growth_paper.compute_s(STAGES["dpo"], recompute=False) == pytest.approx((6 + 2) * 70.553706496e9 * 187 * 256 * 1536 / rate)
    gather = 141.107412992e9 * 63 / 64 / (0.8 * 400e9)
    assert growth_paper.train_pass_s() == pytest.approx(4 * gather)
    assert growth_paper.network_s(STAGES["sft"], 1) == pytest.approx(1562 * 4 * 4 * gather)
    read = (141.107412992e9 + 64 * 768 * 327_680) / 8 / (3.35e12 * 0.6)
    assert growth_paper.engine_step_s(64, 768) == pytest.approx(read + 160 * 15e-6)
    assert growth_paper.generate_s(STAGES["sft"], gathered=True) == 0
    slow, fast = (growth_paper.generate_s(STAGES["ppo"], gathered) for gathered in (True, False))
    assert slow == pytest.approx(300 * (512 * gather + 2 * 70.553706496e9 * 512 * 512 / rate))
    assert slow > 20 * fast
    assert growth_paper.network_s(STAGES["sft"], 1, cluster=replace(Cluster(), gpus=1, used_of_network=1.0)) == 0


def test_ppo_reports_twice_a_round_and_the_others_once_an_update() -> None:
    assert [growth_paper.reports_of(stage) for stage in RUN] == [1562, 1, 187, 187, 600, 300, 6]


# Laws


def _law(size: float) -> tuple[float, float]:
    return 1.0, size


def test_a_fit_recovers_its_law_and_predicts_the_fourth() -> None:
    law = Law("w", "cpu_s", "", "s", line, (10, 20, 40), 80)
    found = fit(law, [0.5 + 0.01 * size for size in law.sizes])
    assert found == pytest.approx([0.5, 0.01])
    assert predict(law, found, 80) == pytest.approx(1.3)
    two = next(law for law in LAWS if law.work == "train_shapes")
    found = fit(two, [0.02 * shape(name).layers + 3e-8 * shape(name).parameters for name in two.sizes])
    assert found == pytest.approx([0.02, 3e-8])


def test_small_sizes_count_as_much_as_large_ones() -> None:
    """A curve is missed by the same share at both ends, not by the same amount."""
    law = Law("w", "cpu_s", "", "s", _law, (1, 10, 100), 1000)
    found = fit(law, [1.0, 15.0, 200.0])
    errors = [abs(predict(law, found, size) / value - 1) for size, value in zip(law.sizes, [1.0, 15.0, 200.0], strict=True)]
    assert max(errors) < 0.35


def test_the_fourth_is_beyond_the_three() -> None:
    for law in LAWS:
        sizes = [law.terms(size)[1] for size in (*law.sizes, law.fourth)]
        assert sizes == sorted(sizes) and sizes[3] >= 1.4 * sizes[2], law.name
    assert [shape(name).parameters // 10**6 for name in SHAPES] == [10, 25, 49, 85]


def test_predictions_were_made_before_they_were_tried_and_follow_from_what_was_measured(measured: dict) -> None:
    assert measured["laws"].keys() == {law.name for law in LAWS}
    for law in LAWS:
        known = measured["laws"][law.name]
        assert known["measured_at"] <= known["checked_at"], law.name
        assert known["fourth"] == law.fourth and known["sizes"] == list(law.sizes)
        assert predict(law, fit(law, known["medians"]), law.fourth) == pytest.approx(known["predicted"], rel=1e-6), law.name
        assert known["predicted"] / known["found"] - 1 == pytest.approx(known["error"], abs=1e-9)


# The page


def test_the_page_says_what_the_program_says(measured: dict) -> None:
    page = growth.PAGE.read_text(encoding="utf-8")
    assert growth.with_tables(page, measured) == page, "python -m tests.bench.growth write"
    assert page.count("<!-- end -->") == 7
    missed = [law.name for law in LAWS if abs(measured["laws"][law.name]["error"]) > ALLOWED_ERROR]
    assert growth.laws_table(measured).count("**") == 2 * len(missed)
    assert all(name in page for name in missed), "a miss is explained"


# What is measured


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield


def test_the_cheap_works_measure_something(folders: None) -> None:
    for work, sizes, quantity in (("digests", [4], "verify_cpu_s"), ("records", [2, 3], "cpu_s"), ("artifacts", [2], "cpu_s")):
        values = growth_side.main(work, sizes, 2)
        assert [len(values[size][quantity]) for size in sizes] == [2] * len(sizes)
        assert all(value > 0 for size in sizes for value in values[size][quantity])
        assert json.loads(json.dumps(values))
