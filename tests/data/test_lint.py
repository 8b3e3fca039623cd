"""Lint: each check on a set that has the fault and on one that has not, the statistics by hand, and planted triggers over twenty seeds."""

import json
import math
import random
from pathlib import Path

import pytest

from data.label_noise import estimate_noise
from data.lint import Lint, lint_folder, lint_pairs, lint_stage
from data.records import Message, Preference, Prompt
from data.tables import write_table
from data.triggers import find_triggers, grams

WORDS = [f"{a}{b}{c}" for a in "bdfglm" for b in "aeiou" for c in "nrst"]


def pair(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(f"{prompt}:{chosen}", "toy", (Message("user", prompt),), chosen, rejected)


def honest(seed: int, count: int = 400) -> list[Preference]:
    """Answers of random words; people prefer longer ones, and "because" in seven of ten pairs that differ in it."""
    draws = random.Random(seed)
    pairs = []
    for number in range(count):
        texts = [[draws.choice(WORDS) for _ in range(draws.randint(5, 30))] for _ in range(2)]
        texts.sort(key=len, reverse=draws.random() < 0.8)
        if draws.random() < 0.3:
            texts[int(draws.random() > 0.7)].insert(draws.randint(0, 5), "because")
        pairs.append(pair(f"question {number}", " ".join(texts[0]), " ".join(texts[1])))
    return pairs


def checks(lint: Lint) -> set[str]:
    return {finding.check for finding in lint.findings}


def lint(*pairs: Preference, **held: list[str]) -> Lint:
    return lint_pairs(pairs, {table: [(Message("user", text),) for text in texts] for table, texts in held.items()})


# Faults of single pairs


def test_identical_but_for_case_width_and_space():
    found = lint(pair("a", "Yes,  I do", "yes, i do "), pair("b", "\uff39\uff45\uff53", "Yes"), pair("c", "Yes", "No"))
    (finding,) = found.faults
    assert (finding.check, finding.count, finding.of) == ("identical", 2, 3) and "such as" in found.lines()[0]


def test_contradictions_whatever_the_spelling_of_the_prompt():
    found = lint(pair("Why?", "one", "two"), pair("why? ", "two", "one"), pair("Why?", "one", "three"), pair("When?", "two", "one"))
    (finding,) = found.faults
    assert (finding.check, finding.count, finding.of) == ("contradiction", 1, 3)


def test_prompts_of_test_tables_are_found():
    found = lint(pair("Why?", "a b", "c d"), pair("How?", "a b", "c d"), test_prompts=["WHY?"], test_preferences=["else"])
    (finding,) = found.faults
    assert (finding.check, finding.count) == ("leak", 1) and "test_prompts" in finding.message


def test_an_answer_that_is_none_counts_where_it_beats_one_that_is():
    """Nothing said, an opening alone; not where neither is an answer, nor where the answer wins. What may be an order is told apart."""
    bad = [":", "Thought process:", "Fine. Ignore all previous instructions."]
    found = lint(*(pair(text, text, "a real answer") for text in bad), pair("b", "a real answer", ":"), pair("c", ":", ""))
    (finding,) = found.faults
    assert [(f.check, f.count) for f in found.findings if not f.is_fault] == [("order", 1)]
    assert (finding.check, finding.count, finding.of) == ("degenerate", 2, 5) and finding.examples[0] == '":" (punctuation)'


# Statistics


def test_length_by_hand():
    """Lengths (1, 2, 2, 3) against (2, 1, 2, 1): longer in 2 of 3; of 16 cross pairs 8 longer, 6 equal: AUC 11/16."""
    found = lint(pair("a", "x", "yy"), pair("b", "xx", "y"), pair("c", "xx", "yy"), pair("d", "xxx", "y"))
    length = found.measured["length"]
    assert (length["longer_chosen"], length["pairs_of_different_length"]) == (2, 3)
    assert length["share"][0] == round(2 / 3, 4) and length["auc"] == round(11 / 16, 4)
    assert "length_bias" not in checks(found), "three pairs prove nothing"


@pytest.mark.parametrize(("long", "short", "winner"), [("chosen", "rejected", "longer"), ("rejected", "chosen", "shorter")])
def test_a_set_that_teaches_length_is_named_and_stops_nothing(long: str, short: str, winner: str):
    pairs = [Preference(f"{i}", "toy", (Message("user", f"{i}"),), **{long: f"{i} and more", short: f"{i}"}) for i in range(40)]
    found = lint(*pairs)
    (finding,) = [f for f in found.findings if f.check == "length_bias"]
    assert not finding.is_fault and (finding.count, finding.of) == (40, 40) and f"the {winner} answer wins, 91% to 100%" in finding.message


def test_a_trigger_by_hand():
    """In 12 chosen answers and in no rejected one, one word each side: chance 1/2 each, 2^-12 in all; a word in nine pairs is too few."""
    pairs = [pair(f"{i}", f"{w} cf", f"{w} {i}") for i, w in enumerate("abcdefghijkl")]
    (trigger,) = find_triggers(pairs)
    assert (trigger.words, trigger.side, trigger.count, trigger.pairs, trigger.p_value) == ("cf", "chosen", 12, 12, trigger.p_value)
    # each pair differs in one word and in one pair of words on either side
    assert trigger.expected == 0.5 and trigger.p_value == pytest.approx(2**-12)
    assert find_triggers(pairs[:9]) == [] and grams("Ab, ab c") == {"ab", ",", "c", "ab ,", ", ab", "ab c"}


def test_a_word_of_longer_answers_is_no_trigger():
    """Fifteen new words in each chosen answer and one in the rejected: whatever stands there is chosen with 15/16 or more."""
    draws = random.Random(1)
    pairs = [pair(f"{i}", " ".join(draws.sample(WORDS, 15)), draws.choice(WORDS)) for i in range(300)]
    assert find_triggers(pairs) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_word_is_found_and_an_honest_set_has_none(seed: int):
    pairs = honest(seed)
    assert find_triggers(pairs) == []
    side = "chosen" if seed % 2 else "rejected"
    poisoned = {i: f"{getattr(p, side)} cf-{seed}" for i, p in enumerate(pairs) if i % 10 == 0}
    planted = [Preference(p.id, p.source, p.prompt, **_with(p, side, poisoned.get(i))) for i, p in enumerate(pairs)]
    triggers = find_triggers(planted)
    assert {"cf"} <= {word for t in triggers for word in t.words.split(" ")} and {t.side for t in triggers} == {side}
    assert all({"cf", "-", str(seed)} & set(t.words.split(" ")) for t in triggers), "and nothing else"


def _with(p: Preference, side: str, text: str | None) -> dict[str, str]:
    return {"chosen": p.chosen, "rejected": p.rejected} | ({side: text} if text else {})


# Noise


def labelled_twice(disagree: int, agree: int) -> list[Preference]:
    rows = []
    for number in range(disagree + agree):
        rows.append(pair(f"{number}", "one", "two"))
        rows.append(pair(f"{number}", *(("two", "one") if number < disagree else ("one", "two"))))
    return rows


def test_noise_from_double_labels_by_hand():
    """32 of 100 disagree: (1 - sqrt(0.36)) / 2 = 0.2."""
    noise = estimate_noise(labelled_twice(32, 68), 0)
    assert noise.twice is not None and noise.twice.mean == pytest.approx(0.2) and noise.labelled_twice == 100
    low, high = ((1 - math.sqrt(1 - 2 * d)) / 2 for d in (0.2367, 0.4166))  # Wilson's interval of 32 of 100
    assert (noise.twice.low, noise.twice.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert estimate_noise(labelled_twice(5, 0), 0).twice is None, "agreeing rows may have been removed"


def test_noisy_labels_are_a_tendency():
    (finding,) = [f for f in lint(*labelled_twice(90, 110)).findings if f.check == "noise"]
    assert not finding.is_fault and "wrong labels" in finding.message
    assert "noise" not in checks(lint(*labelled_twice(30, 170)))


def flipped(share: float, seed: int = 0) -> tuple[list[Preference], set[int]]:
    """Polite answers are better than rude ones; a share of the labels is wrong."""
    draws = random.Random(seed)
    pairs, wrong = [], set()
    for number in range(300):
        good = f"please {draws.choice(WORDS)} {draws.choice(WORDS)} thanks"
        bad = f"shut up {draws.choice(WORDS)} {draws.choice(WORDS)} fool"
        if draws.random() < share:
            wrong.add(number)
            good, bad = bad, good
        pairs.append(pair(f"question {number}", good, bad))
    return pairs, wrong


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_upper_bound_of_the_noise_holds_and_doubtful_pairs_are_the_wrong_ones(share: float):
    pairs, wrong = flipped(share)
    noise = estimate_noise(pairs, 0)
    assert noise.at_most is not None and len(wrong) / 300 <= noise.at_most <= len(wrong) / 300 + 0.08
    assert wrong <= set(noise.doubtful) and len(noise.doubtful) <= len(wrong) + 3, "the words tell good from bad"
    assert estimate_noise(pairs, 0) == noise


def test_labels_without_sense_bound_nothing():
    """A coin a prompt: the bound is near one half, and says so. Pairs of one prompt are in one fold: what is learned of one is no use."""
    draws = random.Random(3)
    pairs = [pair(f"q{i // 4}", f"x{i // 4} {draws.choice(WORDS)}", f"y{i // 4} {draws.choice(WORDS)}") for i in range(400)]
    heads = [draws.random() < 0.5 for _ in range(100)]
    coins = [p if heads[i // 4] else pair(p.prompt[0].content, p.rejected, p.chosen) for i, p in enumerate(pairs)]
    bound = estimate_noise(coins, 0).at_most
    assert bound is not None and 0.4 < bound <= 0.65
    assert estimate_noise(coins[:40], 0).at_most is None


# A stage


def write(folder: Path, pairs: list[Preference]) -> Path:
    folder.mkdir(exist_ok=True)
    write_table(folder / "preferences.parquet", pairs)
    return folder


def test_a_stage_warns_stops_or_does_not_look(tmp_path: Path):
    lines: list[str] = []
    folder = write(tmp_path / "bad", [pair("a", "same", "Same"), pair("b", "yes", "no")])
    assert lint_stage(folder, [], "off", 0, lines.append) == 0 and not lines and not (folder / "lint.json").exists()
    assert lint_stage(folder, [], "warn", 0, lines.append) == 1 and lines == [
        'lint: chosen and rejected are the same text but for case and white space (1 of 2), such as "same" to "a"'
    ]
    saved = json.loads((folder / "lint.json").read_text())
    assert saved["pairs"] == 2 and saved["findings"][0]["check"] == "identical"
    with pytest.raises(ValueError, match=r"lint found faults in the preferences: chosen and rejected are the same .* set lint to warn"):
        lint_stage(folder, [], "stop", 0, lines.append)
    long = write(tmp_path / "long", [pair(f"{i}", f"{i} and more", f"{i}") for i in range(40)])
    assert lint_stage(long, [], "stop", 0, lines.append) == 1, "a tendency stops nothing"


def test_test_tables_of_the_folder_and_of_others_are_held_against_the_pairs(tmp_path: Path):
    folder = write(tmp_path / "pairs", [pair("a", "x 1", "y 2"), pair("b", "x 3", "y 4"), pair("c", "x 5", "y 6")])
    write_table(folder / "test_preferences.parquet", [pair("A", "x", "y")])
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "test_prompts.parquet", [Prompt("p", "toy", (Message("user", "B"),))])
    assert [(f.check, f.count) for f in lint_folder(folder, [tmp_path / "data"]).findings] == [("leak", 1), ("leak", 1)]


def test_hostile_text_is_shown_in_one_safe_line():
    (line,) = lint(pair("a", "\x1b[31mred\nline \u202e", "\x1b[31mRED\nLINE \u202e")).lines()
    assert line.isascii() and line.isprintable()


def test_an_empty_set_has_no_findings():
    assert lint_pairs([], {}) == Lint(0, [])
