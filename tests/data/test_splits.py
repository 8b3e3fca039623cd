import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.configs import CurateConfig, SourceConfig
from data.forms import Example
from data.records import Message
from data.splits import TEST_TABLES, TRAIN_TABLES, Candidate, allocate, quotas, table_quotas, tables_of

FILE = {"kind": "file", "name": "x"}
NONE = dict.fromkeys((*TEST_TABLES, *TRAIN_TABLES), 0)


def candidate(key, source=0, **answers):
    return Candidate(0, tables_of(Example((Message("user", key),), **answers)), source, key, "f", 1, 1, 1)


def shows(n, source=0, prefix="k"):
    return [candidate(f"{prefix}{i}", source, completion="a") for i in range(n)]


def pairs(n, source=0, prefix="k"):
    return [candidate(f"{prefix}{i}", source, completion="a", chosen="a", rejected="b") for i in range(n)]


def keys(rows):
    return [row.key for row in rows]


def config(*sources, **sizes):
    return CurateConfig(sources=list(sources) or [SourceConfig(**FILE)], **(NONE | sizes))


def split(config, pools, seed=1, held=frozenset()):
    return allocate(table_quotas(config, pools), pools, held=set(held), share_rows=config.share_rows, seed=seed)


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_quotas_add_up_and_are_within_a_row_of_fair(total, weights):
    shares = quotas(total, weights)
    assert sum(shares) == total
    assert all(abs(share - total * weight / sum(weights)) <= 1 for share, weight in zip(shares, weights, strict=True))


def test_quotas_of_every_row():
    assert quotas(-1, [1, 2]) == [-1, -1]


def test_no_prompt_is_in_two_tables():
    tables, held = split(config(demonstrations=30, prompts=30, preferences=20, test_prompts=10, test_preferences=10), [pairs(100)])
    assert {table: len(rows) for table, rows in tables.items() if rows} == {
        "demonstrations": 30,
        "prompts": 30,
        "preferences": 20,
        "test_prompts": 10,
        "test_preferences": 10,
    }
    train = [key for table in TRAIN_TABLES for key in keys(tables[table])]
    assert len(set(train)) == len(train) == 80
    assert held.isdisjoint(train)
    assert held == {key for table in TEST_TABLES for key in keys(tables[table])}


def test_shared_rows_feed_every_training_table_and_no_test_table():
    tables, held = split(config(demonstrations=-1, prompts=-1, preferences=-1, test_preferences=20, share_rows=True), [pairs(100)])
    assert len(held) == 20
    for table in ("demonstrations", "prompts", "preferences"):
        assert len(tables[table]) == 80
        assert held.isdisjoint(keys(tables[table]))


def test_all_rows_of_a_held_out_prompt_are_held_out():
    pool = [candidate("same", completion=str(i)) for i in range(50)] + shows(50)
    for seed in range(20):
        tables, held = split(config(demonstrations=-1, test_prompts=25), [pool], seed)
        assert len(set(keys(tables["test_prompts"]))) == 25
        assert held.isdisjoint(keys(tables["demonstrations"]))


def test_prompts_for_sampling_are_distinct_and_demonstrations_need_not_be():
    pool = [candidate("same", completion=str(i)) for i in range(5)]
    assert len(split(config(prompts=-1), [pool])[0]["prompts"]) == 1
    assert len(split(config(demonstrations=-1), [pool])[0]["demonstrations"]) == 5


def test_the_split_is_a_function_of_the_seed():
    sizes = {"demonstrations": 40, "test_prompts": 10}
    first, again, other = (split(config(**sizes), [shows(100)], seed)[0] for seed in (1, 1, 2))
    assert {table: keys(rows) for table, rows in first.items()} == {table: keys(rows) for table, rows in again.items()}
    assert set(keys(first["test_prompts"])) != set(keys(other["test_prompts"]))


def test_a_test_source_feeds_the_test_tables_only_and_alone():
    sources = [SourceConfig(**FILE), SourceConfig(**FILE, role="test")]
    pools = [shows(50), shows(50, 1, "t")]
    tables, _ = split(config(*sources, demonstrations=-1, test_prompts=20), pools, held={"k0"})
    assert {row.source for row in tables["test_prompts"]} == {1}
    assert {row.source for row in tables["demonstrations"]} == {0}
    assert len(tables["demonstrations"]) == 49
    assert len(split(config(*sources, demonstrations=1, test_prompts=-1), pools)[0]["test_prompts"]) == 50


def test_weights_share_a_table_out():
    sources = [SourceConfig(**FILE, weight=3), SourceConfig(**FILE)]
    tables, _ = split(config(*sources, demonstrations=40), [shows(100), shows(100, 1, "o")])
    assert [sum(row.source == number for row in tables["demonstrations"]) for number in (0, 1)] == [30, 10]
    assert {row.source for row in tables["demonstrations"][:20]} == {0, 1}  # mixed, not one after the other


def test_a_source_that_cannot_supply_a_table_is_not_asked():
    sources = [SourceConfig(**FILE), SourceConfig(**FILE)]
    assert table_quotas(config(*sources, preferences=10), [shows(9), pairs(9, 1)])["preferences"] == {1: 10}
    assert table_quotas(config(SourceConfig(), *sources, prompts=10, preferences=4), [None, shows(9), pairs(9)]) == {
        "preferences": {2: 4},
        "prompts": {0: 4, 1: 3, 2: 3},
    }


@pytest.mark.parametrize(
    ("sizes", "pools", "match"),
    [
        ({"preferences": 4}, [shows(4)], "preferences=4, but no source supplies"),
        ({"preferences": 4}, [None], "no source supplies"),
        ({"prompts": -1}, [None], "has no end"),
        ({"test_preferences": 4}, [shows(4)], "test_preferences=4, but no source"),
    ],
)
def test_what_no_source_can_supply_is_refused(sizes, pools, match):
    with pytest.raises(ValueError, match=match):
        table_quotas(config(**sizes), pools)
