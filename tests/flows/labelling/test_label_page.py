"""The pages as a client sees them: who may enter, what a form may do, and what every answer carries."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from data.labelling.records import Answer
from data.labelling.store import LabelStore
from flows.labelling.access import Access, checked_name
from flows.labelling.app import LARGEST_FORM_BYTES, LabelPage, create_app, letter, shown
from flows.labelling.forms import answer_of, fields_of

HOSTS = ["127.0.0.1"]
BASE = "http://127.0.0.1"
CLOSED = "default-src 'none'"


def client_of(store: LabelStore, links_only: bool = False) -> TestClient:
    return TestClient(create_app(LabelPage(store, Access(store, links_only=links_only), lambda: None), HOSTS), base_url=BASE)


@pytest.fixture
def store(make_task) -> LabelStore:
    return make_task(3)


@pytest.fixture
def ada(store) -> Iterator[TestClient]:
    with client_of(store) as client:
        assert client.post("/sign-in", data={"name": "ada"}).url.path == "/item/1"
        yield client


def fields_in(text: str) -> dict[str, str]:
    return dict(re.findall(r'name="(csrf|form|now)" value="([^"]*)"', text))


def answer(client: TestClient, path: str, **fields: Any) -> Any:
    return client.post(path, data={**fields_in(client.get(path).text), **fields})


# What every page carries


PATHS = ["/", "/item/1", "/done", "/overview", "/static/label.js", "/nowhere", "/item/x", "/item/99", f"/item/{10**20}", "/enter/none"]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_forbids_whatever_is_not_the_pages_own(ada, path):
    headers = ada.get(path, follow_redirects=False).headers
    policy = headers["content-security-policy"]
    assert policy.startswith(CLOSED) and "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy and "form-action 'self'" in policy
    assert (headers["x-frame-options"], headers["x-content-type-options"], headers["cache-control"]) == ("DENY", "nosniff", "no-store")


def test_no_page_holds_a_script_a_style_or_an_address_of_its_own(ada):
    for path in ("/item/1", "/overview", "/done"):
        text = ada.get(path).text
        assert not re.search(r"<script(?! src=\"/static/)|<style|\sstyle=|\son\w+=|https?://", text)


def test_hostile_text_is_text(make_task, hostile):
    with client_of(make_task(1, texts=hostile)) as client:
        client.post("/sign-in", data={"name": "ada"})
        text = client.get("/item/1").text
    assert text.count("<script") == 1 and "<img" not in text and "&lt;/script&gt;" in text and "{{ 7 * 7 }}" in text
    assert "\u202e" not in text and "\x00" not in text and '<span class="mark" title="hidden character">RLO</span>' in text
    assert shown("\ud800<b>").encode() == b'<span class="mark" title="hidden character">U+D800</span>&lt;b&gt;'


def test_letters_of_answers():
    assert [letter(n) for n in (0, 25, 26, 27)] == ["A", "Z", "AA", "AB"]


# Who may enter


def test_nobody_gets_in_without_a_name_or_a_link(store):
    with client_of(store) as client:
        for path in ("/", "/next", "/item/1", "/done", "/overview"):
            assert client.get(path).status_code == 401
        assert client.post("/item/1", data={"grade": "2"}).status_code == 401
        assert client.get("/enter/0000").status_code == 401


def test_a_link_signs_in_and_the_cookie_is_closed_to_scripts_and_other_sites(store):
    access = Access(store, links_only=True)
    with client_of(store, links_only=True) as client:
        welcome = client.get(f"/enter/{access.link_token('ada')}")
        assert "Welcome" in welcome.text and re.search(r"HttpOnly.*SameSite=strict", welcome.headers["set-cookie"])
        assert client.get("/next").url.path == "/item/1"
        assert access.link_token("ada") == access.link_token("ada") != access.link_token("bob")
    secret = store.path.with_suffix(".secret")
    assert secret.stat().st_mode & 0o777 == 0o600 and access.link_token("ada").encode() not in store.path.read_bytes()


def test_where_links_are_needed_a_name_is_not_enough(store):
    with client_of(store) as client:
        client.post("/sign-in", data={"name": "ada"})
        cookies = dict(client.cookies)
    with client_of(store, links_only=True) as client:
        assert client.post("/sign-in", data={"name": "eve"}).status_code == 422
        client.cookies.update(cookies)
        assert client.get("/item/1").status_code == 401


@pytest.mark.parametrize("name", ["", " ada", "<b>", "a" * 65, "a\nb", "\u202eada"])
def test_a_name_that_is_none_is_refused(store, name):
    with pytest.raises(ValueError, match="cannot be an annotator's name"):
        checked_name(name)
    with client_of(store) as client:
        assert client.post("/sign-in", data={"name": name}).status_code == (422 if name != " ada" else 200)  # blanks around it are cut


def test_a_page_reached_under_another_name_is_refused(store):
    with client_of(store) as client:
        assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_cookies_of_two_tasks_on_one_host_do_not_meet(make_task):
    names = {Access(make_task(1, name=f"task-{n}"), links_only=False).cookie for n in range(2)}
    assert len(names) == 2


# Forms


def test_an_answer_is_taken_and_the_next_item_shown(ada, store):
    done = answer(ada, "/item/1", grade="2", comment=" first\r\nsecond ")
    assert done.url.path == "/item/2" and "Item 1 is saved" in done.text
    (given,) = store.given()
    assert given.grade == (2 if given.order == (0, 1) else -2) and given.ranks[given.order[0]] == 0
    assert given.comment == "first\nsecond" and 0 <= given.seconds < 60 and given.annotator == "ada"


@pytest.mark.parametrize("csrf", ["", "0" * 64, "\u202e"])
def test_a_forged_form_changes_nothing(ada, store, csrf):
    assert answer(ada, "/item/1", grade="2", csrf=csrf).status_code == 403
    assert store.given() == []


def test_a_form_from_another_site_changes_nothing(ada, store):
    fields = fields_in(ada.get("/item/1").text)
    sent = ada.post("/item/1", data={**fields, "grade": "2"}, headers={"origin": "http://evil.example"})
    assert sent.status_code == 403 and store.given() == []
    assert ada.post("/item/1", data={**fields, "grade": "2"}, headers={"origin": BASE}).status_code == 200
    assert len(store.given()) == 1


def test_a_form_sent_twice_is_one_label_and_another_choice_replaces_it(ada, store):
    fields = fields_in(ada.get("/item/1").text)
    for grade in ("2", "2", "-1"):
        ada.post("/item/1", data={**fields, "grade": grade})
    assert len(store.given()) == 1 and abs(store.given()[0].grade) == 1


@pytest.mark.parametrize(
    ("fields", "fault"), [({}, "Choose one"), ({"grade": "3"}, "not one of the choices"), ({"grade": "x"}, "not one of the choices")]
)
def test_a_form_without_an_answer_is_shown_again_with_what_was_written(ada, store, fields, fault):
    shown_again = answer(ada, "/item/1", comment="keep <me>", **fields)
    assert shown_again.status_code == 422 and fault in shown_again.text and "keep &lt;me&gt;" in shown_again.text
    assert store.given() == []


def test_a_body_that_is_too_large_or_no_form_is_refused(ada, store):
    assert ada.post("/item/1", content=b"comment=" + b"x" * LARGEST_FORM_BYTES).status_code == 413
    assert ada.post("/item/1", content=b"&".join(b"a=1" for _ in range(300))).status_code == 400
    assert ada.post("/item/1", content=b"\xff\xfe").status_code == 403
    assert store.given() == []


def test_an_answer_can_be_changed_later_and_is_shown_as_it_stands(ada, store):
    for position in (1, 2, 3):
        answer(ada, f"/item/{position}", grade="2", comment=f"c{position}")
    assert ada.get("/next").url.path == "/done"
    text = ada.get("/item/2").text
    assert re.search(r'value="2"[^>]*\s+aria-pressed="true"', text) and ">\nc2</textarea>" in text
    answer(ada, "/item/2", grade="0")
    assert sorted(abs(given.grade) for given in store.given()) == [0, 2, 2]
    assert ada.get("/overview").text.count('class="labelled"') == 3


def test_skip_leaves_it_for_the_end(ada, store):
    assert answer(ada, "/item/1", skip="1").url.path == "/item/2"
    answer(ada, "/item/2", grade="2")
    assert answer(ada, "/item/3", grade="2").url.path == "/item/1"
    assert "1 skipped" in ada.get("/item/1").text


def test_nobody_reaches_the_list_of_another(ada, store):
    answer(ada, "/item/1", grade="2")
    with client_of(store) as bob:
        bob.post("/sign-in", data={"name": "bob"})
        mine = fields_in(bob.get("/item/1").text)
        assert bob.get("/item/2").status_code == 404
        assert ada.post("/item/2", data={**mine, "grade": "2"}).status_code == 403  # bob's token in ada's session
    assert [given.annotator for given in store.given()] == ["ada"]


def test_own_guidelines_are_shown_as_text(make_task):
    with client_of(make_task(1, guidelines="Prefer <b>short</b>.\n")) as client:
        client.post("/sign-in", data={"name": "ada"})
        assert "Prefer &lt;b&gt;short&lt;/b&gt;." in client.get("/item/1").text
        assert "customer assistant" not in client.get("/item/1").text


# From the order shown to that of the completions


@pytest.mark.parametrize(
    ("fields", "order", "expected"),
    [
        ({"grade": "2"}, (0, 1), Answer((0, 1), 2)),
        ({"grade": "2"}, (1, 0), Answer((1, 0), -2)),
        ({"grade": "-1"}, (1, 0), Answer((0, 1), 1)),
        ({"grade": "0"}, (1, 0), Answer((0, 0), 0)),
        # Shown C, A, B with C first, A and B tied behind: completion 2 is best.
        ({"place-0": "1", "place-1": "2", "place-2": "2"}, (2, 0, 1), Answer((1, 1, 0))),
    ],
)
def test_an_answer_by_hand(fields, order, expected):
    assert answer_of(fields, order) == expected


def test_the_fields_shown_are_those_that_were_sent(make_task):
    store = make_task(6, k=3)
    store.add_annotator("ada", "t", by_link=False)
    for position in range(1, 7):
        assert store.next_open("ada") == position
        place = store.place("ada", position)
        fields = {"place-0": "2", "place-1": "1", "place-2": "2", "comment": "c"}
        store.label("ada", position, answer_of(fields, place.order), form="f")
        assert fields_of(store.place("ada", position)) == fields
