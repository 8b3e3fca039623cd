"""The endpoint as judge: what is sent, how faults are met, what is paid."""

import asyncio
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from models.judging import fetching
from models.judging.answers import AnswerCache
from models.judging.budget import BudgetSpent
from models.judging.pace import Pace, retry_after_s
from models.run import Stopped

ROOT = Path(__file__).resolve().parents[3]
SECRET = "sk-very-secret-0123456789"
A_BETTER = '{"verdict": "A_better"}'


def pairs(row, count):
    """So many pairs, the second answer of each the longer one."""
    return [row(f"short {i}", f"a longer answer {i}") for i in range(count)]


# What is sent and understood


def test_both_orders_are_asked_and_agreement_decides(server, judge_of, row, never, texts_of):
    (judgement,) = judge_of()([row("short", "a longer answer")], seed=0, tick=never)
    assert sorted(map(texts_of, server.bodies)) == [("a longer answer", "short"), ("short", "a longer answer")]
    assert (judgement.ranks, judgement.scores, judgement.grade, judgement.judge) == ((1, 0), (0.0, 1.0), 0, "ai")
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("wise-1", 0.0, 512)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "response_format" not in body and "Authorization" not in server.headers[0]


def test_a_judge_that_likes_the_first_place_gives_ties(server, judge_of, row, never, say):
    server.behave = lambda body: say(A_BETTER)
    judge = judge_of()
    judgements = judge(pairs(row, 5), seed=0, tick=never)
    assert [judgement.ranks for judgement in judgements] == [(0, 0)] * 5
    assert judge.counts["judge/disagreements"] == 5


def test_a_servers_form_is_asked_for(server, judge_of, row, never):
    judge_of(answer_format="json_schema")(pairs(row, 1), seed=0, tick=never)
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]
    assert schema["additionalProperties"] is False and "B_slightly_better" in schema["properties"]["verdict"]["enum"]


@pytest.mark.parametrize(
    "text",
    [
        *("A_better", "", None, '{"verdict": "A"}', '{"verdict": "A_better"} because', 'Sure! {"verdict": "A_better"}', '["A_better"]'),
        *('{"verdict": "A_better", "verdict": "B_better"}', '{"verdict": "A_better", "score": 9}', '{"verdict": ["A_better"]}', "[" * 9999),
    ],
)
def test_an_unreadable_answer_abstains_and_is_counted(server, judge_of, row, never, say, text):
    server.behave = lambda body: say(text)
    judge = judge_of()
    (judgement,) = judge(pairs(row, 1), seed=0, tick=never)
    assert judgement.abstained and judgement.reason == "unreadable answer (1)"
    assert (judge.counts["judge/unreadable"], judge.counts["judge/abstained"]) == (2, 1)
    assert judge.costs["judge/completion_tokens"] == 400, "it was paid for all the same"
    judge_of()(pairs(row, 1), seed=0, tick=never)
    assert len(server.bodies) == 2, "and is not asked again"


def test_code_fences_and_reasons_are_allowed(server, judge_of, row, never, say, texts_of):
    def behave(body):
        verdict = "A_better" if texts_of(body)[0] == "short 0" else "B_better"
        return say(f'```json\n{{"reasoning": "it is short", "verdict": "{verdict}"}}\n```\n')

    server.behave = behave
    (judgement,) = judge_of(reasoning=True)(pairs(row, 1), seed=0, tick=never)
    assert judgement.ranks == (0, 1)


# Faults


def test_too_many_requests_are_met_with_patience(server, judge_of, row, never, say):
    """Nobody asks in the time that the server wants."""
    server.behave = lambda body: (429, {"Retry-After": "0.4"}, b"") if len(server.bodies) == 1 else say(A_BETTER)
    judge = judge_of(concurrency=1)
    judge(pairs(row, 2), seed=0, tick=never)
    assert server.times[1] - server.times[0] >= 0.4
    assert (judge.counts["judge/requests"], judge.counts["judge/retries"]) == (5, 1)


def test_server_errors_and_late_answers_are_asked_again(server, judge_of, row, never, say):
    def behave(body):
        number = len(server.bodies)
        if number == 2:
            time.sleep(0.8)
        return {1: (500, {}, b"oops"), 3: (200, {}, b"<html>a proxy</html>"), 4: (503, {}, b"")}.get(number, say(A_BETTER))

    server.behave = behave
    judge = judge_of(concurrency=1, timeout_s=0.4)
    (judgement,) = judge(pairs(row, 1), seed=0, tick=never)
    assert judgement.ranks == (0, 0) and len(server.bodies) == 6
    assert judge.costs["judge/prompt_tokens"] == 3000, "two answers came in"


def test_a_server_that_only_fails_is_given_up(server, judge_of, row, never):
    server.behave = lambda body: (500, {}, b"")
    with pytest.raises(ConnectionError, match=r"failed 3 times, the last time with HTTP 500"):
        judge_of(retries=2, concurrency=1)(pairs(row, 3), seed=0, tick=never)
    assert len(server.bodies) == 3


def test_a_server_that_is_not_there_is_named(judge_of, row, never):
    with pytest.raises(ConnectionError, match=r"http://127.0.0.1:9/v1 failed 2 times, the last time with ConnectError"):
        judge_of(url="http://127.0.0.1:9/v1", retries=1)(pairs(row, 1), seed=0, tick=never)


def test_what_the_server_does_not_like_abstains_unless_it_likes_nothing(server, judge_of, row, never):
    usual = server.behave
    server.behave = lambda body: (400, {}, b"context too long") if "short 0" in body["messages"][1]["content"] else usual(body)
    judge = judge_of()
    first, second = judge(pairs(row, 2), seed=0, tick=never)
    assert first.reason == "refused by the endpoint (1)" and second.ranks == (1, 0)
    assert judge.counts["judge/refused"] == 2
    with pytest.raises(ValueError, match="refuses every request: HTTP 400"):
        judge_of()(pairs(row, 1), seed=0, tick=never)


@pytest.mark.parametrize(("status", "hint"), [(401, "api_key_variable"), (404, "no such model"), (302, "check url and model")])
def test_a_wrong_key_or_model_is_an_error_of_the_users(server, judge_of, row, never, monkeypatch, status, hint):
    """Not even when the server repeats the key."""
    monkeypatch.setenv("MY_KEY", SECRET)
    server.behave = lambda body: (status, {"Location": "http://127.0.0.1:9/"}, f"Incorrect API key provided: {SECRET}".encode())
    with pytest.raises(ValueError, match=hint) as caught:
        judge_of(api_key_variable="MY_KEY")(pairs(row, 1), seed=0, tick=never)
    assert SECRET not in str(caught.value)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("value", ["", "  ", f"{SECRET}\nX: y", f"{SECRET} {SECRET}", f"{SECRET}ß"])
def test_what_cannot_be_a_key_is_refused_and_not_repeated(judge_of, monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ValueError, match="MY_KEY") as caught:
        judge_of(api_key_variable="MY_KEY")
    assert SECRET not in str(caught.value)


def test_retry_after_is_a_number_or_a_date():
    assert retry_after_s({"retry-after": "2.5"}) == 2.5
    assert retry_after_s({}) == retry_after_s({"retry-after": "soon"}) == retry_after_s({"retry-after": "nan"}) == 0
    assert 28 < retry_after_s({"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=30))}) <= 30
    assert retry_after_s({"retry-after": format_datetime(datetime.now(UTC) - timedelta(seconds=30))}) == 0
    with pytest.raises(ConnectionError, match="86400 s"):
        retry_after_s({"retry-after": "86400"})


# Pace


def test_so_many_requests_at_once_and_no_more(server, judge_of, row, never, say):
    server.behave = lambda body: time.sleep(0.05) or say(A_BETTER)
    judge_of(concurrency=3)(pairs(row, 6), seed=0, tick=never)
    assert server.peak == 3 and len(server.bodies) == 12


def test_requests_are_spread_over_the_minute(monkeypatch):
    """At 1,200 a minute one begins every 0.05 s; asked to wait for a second, all wait. On a clock that only sleeping moves."""
    now, begun = [100.0], []

    async def sleep(seconds):
        now[0] += max(0.0, seconds)

    monkeypatch.setattr("models.judging.pace.time.monotonic", lambda: now[0])
    monkeypatch.setattr("models.judging.pace.asyncio.sleep", sleep)

    async def turns(pace, count):
        for _ in range(count):
            await pace.turn()
            begun.append(now[0])

    pace = Pace(1200)
    asyncio.run(turns(pace, 3))
    pace.hold(1.0)
    asyncio.run(turns(pace, 2))
    assert begun == pytest.approx([100.0, 100.05, 100.10, 101.10, 101.15])
    asyncio.run(turns(Pace(0), 2))
    assert begun[5:] == [begun[4]] * 2, "without a limit at once"


def test_the_limit_holds_for_all_workers(server, judge_of, row, never):
    """From the beginning, not from the first arrival, which a busy machine may note late."""
    judge, began = judge_of(requests_per_minute=600, concurrency=8), time.monotonic()
    judge(pairs(row, 2), seed=0, tick=never)
    assert len(server.times) == 4 and max(server.times) - began >= 3 * 0.1


# Cache


def test_nothing_is_asked_twice(server, judge_of, row, never):
    twice = [*pairs(row, 2), pairs(row, 1)[0]]
    assert [j.ranks for j in judge_of("first")(twice, seed=0, tick=never)] == [(1, 0)] * 3
    assert len(server.bodies) == 4, "the same pair within a call"
    later = judge_of("second")
    assert [j.ranks for j in later(twice, seed=7, tick=never)] == [(1, 0)] * 3
    assert len(server.bodies) == 4, "another run and another seed"
    assert later.counts["judge/cached"] == 4 and later.costs["judge/cost"] == 0
    judge_of(model="wise-2")(twice[:1], seed=0, tick=never)
    judge_of(temperature=0.5)(twice[:1], seed=0, tick=never)
    judge_of(url=server.url + "/")(twice[:1], seed=0, tick=never)
    assert len(server.bodies) == 10, "another model, another request, another address"


KILLED = """
import os, signal, sys
from pathlib import Path
from data.judgements import Candidates
from data.records import Message
from models.configs.ai_judge import AIJudgeConfig
from models.judging.answers import AnswerCache
from models.judging.endpoint import Endpoint
from models.judging.pairwise import PairwiseJudge

url, cache, survive = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
put, kept = AnswerCache.put, []

def put_and_die(self, *arguments):
    put(self, *arguments)
    kept.append(arguments)
    if len(kept) == survive:
        os.kill(os.getpid(), signal.SIGKILL)

AnswerCache.put = put_and_die
config = AIJudgeConfig(backend="endpoint", url=url, model="wise-1", concurrency=1)
judge = PairwiseJudge(config, Endpoint(config, AnswerCache(cache), "stage-0"), "ai")
asked = (Message("user", "Why is the sky blue?"),)
rows = [Candidates(str(i), "toy", asked, (f"short {i}", f"a longer answer {i}"), ("", "")) for i in range(4)]
judge(rows, seed=0, tick=lambda: None)
"""


def test_what_was_paid_before_a_kill_is_not_paid_again(server, judge_of, row, never, tmp_path):
    cache = tmp_path / "cache" / "answers.sqlite"
    killed = subprocess.run([sys.executable, "-c", KILLED, server.url, str(cache), "3"], cwd=ROOT, timeout=120, check=False)
    assert killed.returncode == -9 and len(server.bodies) == 3
    judge = judge_of("stage-0", price_in=2.0, price_out=10.0)
    assert [j.ranks for j in judge(pairs(row, 4), seed=0, tick=never)] == [(1, 0)] * 4
    assert len(server.bodies) == 8 and judge.counts["judge/cached"] == 3
    assert judge.costs["judge/cost"] == pytest.approx(8 * 0.005), "all attempts together"


def test_a_cache_that_is_none_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match=r"answers.sqlite is not a cache .* move it away"):
        AnswerCache(tmp_path / "answers.sqlite")


def test_the_judge_stops_when_asked_and_keeps_what_is_under_way(server, judge_of, row, say):
    """Two requests are under way when the stage is to stop: they come in, no third begins."""
    server.behave = lambda body: time.sleep(0.5) or say(A_BETTER)
    judge = judge_of(concurrency=2)

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        judge(pairs(row, 4), seed=0, tick=stop)
    assert len(server.bodies) == 2
    assert judge.costs["judge/completion_tokens"] == 400


def test_a_judge_that_stops_does_not_wait_for_ever(server, judge_of, row, say, monkeypatch):
    monkeypatch.setattr(fetching, "LAST_ANSWERS_S", 0.2)
    server.behave = lambda body: time.sleep(3) or say(A_BETTER)
    began = time.monotonic()

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        judge_of(concurrency=2)(pairs(row, 4), seed=0, tick=stop)
    assert time.monotonic() - began < 2


# Money


def test_cost_is_tokens_times_price(server, judge_of, row, never):
    """Two answers of 1,500 and 200 tokens, at 2 and 10 a million: 2 x (0.003 + 0.002) = 0.01."""
    judge = judge_of("one", price_in=2.0, price_out=10.0)
    judge(pairs(row, 1), seed=0, tick=never)
    assert judge.costs == {"judge/prompt_tokens": 3000, "judge/completion_tokens": 400, "judge/cost": pytest.approx(0.01)}
    assert judge_of("one", price_in=2.0, price_out=10.0).costs["judge/cost"] == pytest.approx(0.01), "a later attempt of the same stage"
    assert judge_of("two", price_in=2.0, price_out=10.0).costs["judge/cost"] == 0


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": -5, "completion_tokens": "many"}, {"prompt_tokens": True}])
def test_without_a_usage_the_highest_is_assumed(server, judge_of, row, never, say, usage):
    server.behave = lambda body: say(A_BETTER, usage)
    judge = judge_of(max_tokens=7)
    judge(pairs(row, 1), seed=0, tick=never)
    sent = sum(len(json.dumps(body, sort_keys=True).encode()) for body in server.bodies)
    assert judge.costs["judge/prompt_tokens"] == sent and judge.costs["judge/completion_tokens"] == 14


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_the_budget_is_a_ceiling(server, judge_of, row, never, say, concurrency):
    """One unit a token, four tokens at most, two in fact, nine units: 0 + 4, 2 + 4 and 4 + 4 fit, 6 + 4 does not."""
    server.behave = lambda body: time.sleep(0.02) or say(A_BETTER, {"prompt_tokens": 0, "completion_tokens": 2})
    settings = {"price_out": 1e6, "max_tokens": 4, "concurrency": concurrency}
    judge = judge_of(max_cost=9.0, **settings)
    with pytest.raises(BudgetSpent, match="spent 6 of max_cost 9, and its next question may cost 4"):
        judge(pairs(row, 5), seed=0, tick=never)
    assert len(server.bodies) == 3 and judge.costs["judge/cost"] == 6
    richer = judge_of(max_cost=100.0, **settings)
    assert len(richer(pairs(row, 5), seed=0, tick=never)) == 5
    assert len(server.bodies) == 10 and richer.costs["judge/cost"] == 20, "what was paid stays"
