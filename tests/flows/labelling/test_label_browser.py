"""The pages in a real browser, at the width of a laptop and of a telephone: what a person does, by keyboard, mouse and finger."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
SHOTS = os.environ.get("POSTTRAIN_LABEL_SHOTS")  # a folder for pictures of the pages, to be looked at

SERVER = """
import sys, uvicorn
from pathlib import Path
from data.labelling.store import LabelStore
from flows.labelling.access import Access
from flows.labelling.app import LabelPage, create_app

store = LabelStore(Path(sys.argv[1]))
app = create_app(LabelPage(store, Access(store, links_only=False), lambda: None), ["127.0.0.1"])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def look(page: Any, name: str) -> None:
    """Nothing may be wider than the window, whatever is shown; and a picture, where they are wanted."""
    width = page.viewport_size["width"]
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className)"
    assert page.evaluate(wide) == []
    cut = "[...document.querySelectorAll('.text')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0


def at(page: Any, path: str) -> None:
    page.wait_for_url(re.compile(rf"{path}(\?.*)?$"))


def enter(page: Any, served: Any, name: str = "ada") -> None:
    page.goto(served.link(name))
    page.get_by_role("link", name="Start labelling").click()
    at(page, "/item/1")


def test_twenty_pairs_by_keyboard_and_by_hand(served, window):
    page = served(20)
    window.goto(page.link("ada"))
    look(window, "welcome")
    window.get_by_role("link", name="Start labelling").click()
    for number in range(1, 21):
        at(window, f"/item/{number}")
        look(window, "pair") if number == 2 else None
        grade = number % 5 + 1
        if number % 2:
            window.keyboard.press(str(grade))
        else:
            window.locator(f"button.g{grade}").click()
    at(window, "/done")
    look(window, "done")
    assert "All labels are in" in window.inner_text("main")
    given = {row.item: row for row in page.store.given()}
    assert len(given) == 20
    for number in range(1, 21):
        row = given[page.store.place("ada", number).item]
        assert row.grade * (1 if row.order[0] == 0 else -1) == 2 - number % 5
    assert len({row.order for row in given.values()}) == 2


def test_reload_double_click_skip_back_and_change(served, window):
    page = served(4)
    enter(window, page)
    window.locator("#comment").fill("of the first")
    window.locator("button.g1").dblclick(no_wait_after=True)
    at(window, "/item/2")
    assert len(page.store.given()) == 1 and page.store.place("ada", 1).answer.comment == "of the first"
    for _ in range(3):
        window.reload()
    window.keyboard.press("s")
    at(window, "/item/3")
    window.keyboard.press("p")
    at(window, "/item/2")
    window.keyboard.press("p")
    at(window, "/item/1")
    assert window.locator("button.g1").get_attribute("aria-pressed") == "true"
    look(window, "again")
    window.locator("button.g4").click()
    at(window, "/item/3")
    window.go_back()
    window.reload()
    window.goto(f"{page.url}/next")
    at(window, "/item/3")
    for following in ("/item/4", "/item/2"):  # what was skipped comes last
        window.keyboard.press("3")
        at(window, following)
    window.goto(f"{page.url}/overview")
    look(window, "overview")
    assert window.locator(".labelled").count() == 3 and window.locator(".skipped").count() == 1
    window.get_by_role("link", name="2 skipped").click()
    at(window, "/item/2")
    window.keyboard.press("5")
    at(window, "/done")
    assert len(page.store.given()) == 4
    assert sorted(abs(row.grade) for row in page.store.given()) == [0, 0, 1, 2]


def test_keys_do_nothing_while_a_comment_is_written_and_guidelines_are_at_hand(served, window):
    page = served(2)
    enter(window, page)
    window.keyboard.press("/")
    window.keyboard.type("12s? p")
    assert window.locator("#comment").input_value() == "12s? p" and page.store.given() == []
    window.keyboard.press("Escape")
    window.keyboard.press("?")
    assert "customer assistant" in window.inner_text(".panel")
    look(window, "guidelines")
    window.keyboard.press("Escape")
    assert not window.locator(".panel").is_visible()
    window.locator(".guidelines summary").click()
    assert window.locator(".panel").is_visible()


def places(window: Any) -> list[str]:
    return window.evaluate("['0', '1', '2', '3'].map(n => document.querySelector(`input[name=place-${n}]:checked`)?.value ?? '')")


def chip(window: Any, letter: str) -> Any:
    return window.locator(f".chip:text-is('{letter}')")


def drag(window: Any, letter: str, target: Any) -> None:
    """As a hand does it: down, a few moves, up."""
    start, end = chip(window, letter).bounding_box(), target.bounding_box()
    window.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    window.mouse.down()
    for share in (0.3, 0.7, 1.0):
        x = start["x"] + start["width"] / 2 + share * (end["x"] + end["width"] / 2 - start["x"] - start["width"] / 2)
        y = start["y"] + start["height"] / 2 + share * (end["y"] + end["height"] / 2 - start["y"] - start["height"] / 2)
        window.mouse.move(x, y)
    window.mouse.up()


def test_a_ranking_by_dragging_with_a_tie(served, window):
    page = served(1, k=4)
    enter(window, page)
    assert window.locator("button[name=save]").is_disabled()
    drag(window, "D", window.locator(".gap").last)
    drag(window, "A", window.locator(".gap").last)
    drag(window, "B", chip(window, "A"))  # onto another: a tie
    assert places(window) == ["2", "2", "", "1"]
    drag(window, "C", window.locator(".gap").nth(1))  # between D and A = B
    assert places(window) == ["3", "3", "2", "1"]
    assert window.locator(".said").text_content() == "D > C > A = B"
    look(window, "ranking")
    drag(window, "A", window.locator(".gap").first)  # out of the tie, to the front
    assert window.locator(".said").text_content() == "A > D > C > B"
    window.locator("button[name=save]").click()
    at(window, "/done")
    (given,) = page.store.given()
    assert [given.ranks[index] for index in given.order] == [0, 3, 2, 1]


def test_a_ranking_with_the_finger(served, chromium):
    page = served(1, k=4)
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    window = context.new_page()
    enter(window, page)
    session = context.new_cdp_session(window)

    def touch(kind: str, box: Any) -> None:
        point = [{"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}] if box else []
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": point})

    for letter, target in [("C", ".track .gap >> nth=-1"), ("A", ".chip:text-is('C')")]:
        start, end = chip(window, letter).bounding_box(), window.locator(target).bounding_box()
        halfway = {name: (start[name] + end[name]) / 2 for name in start}
        for kind, box in [("touchStart", start), ("touchMove", halfway), ("touchMove", end), ("touchEnd", None)]:
            touch(kind, box)
    window.wait_for_function("['C = A', 'A = C'].includes(document.querySelector('.said').textContent)")
    assert places(window) == ["1", "", "1", ""]
    for letter, place in (("B", 3), ("D", 2)):
        window.locator(f"#answer-{'ABCD'.index(letter)} .places label").nth(place - 1).tap()
    look(window, "finger")
    window.locator("button[name=save]").tap()
    at(window, "/done")
    (given,) = page.store.given()
    assert [given.ranks[index] for index in given.order] == [0, 2, 0, 1]
    context.close()


def test_a_ranking_by_keyboard_alone(served, window):
    page = served(2, k=4)
    enter(window, page)
    for key in ("d", "1", "a", "2", "c", "2", "b", "4"):
        window.keyboard.press(key)
    assert window.locator(".said").text_content() == "D > A = C > B"
    for key, order in [("ArrowLeft", "D > B > A = C"), ("=", "D = B > A = C"), ("ArrowRight", "D > B > A = C")]:
        window.keyboard.press(key)
        assert window.locator(".said").text_content() in (order, order.replace("D = B", "B = D"))
    window.keyboard.press("Enter")
    at(window, "/item/2")
    (given,) = page.store.given()
    assert [given.ranks[index] for index in given.order] == [2, 1, 2, 0]
    # The buttons do what the keys do, and a chip can be reached with the tab key.
    for letter, button in [("A", "worse"), ("B", "worse"), ("C", "tie"), ("D", "better")]:
        chip(window, letter).focus()
        window.keyboard.press(" ")
        window.locator(f".tool:has-text('{button}')").click()
    assert window.locator(".said").text_content() == "D > A > B = C"


def test_hostile_texts_are_shown_as_text_and_stay_in_their_place(served, window, hostile):
    page = served(1, k=4, texts=hostile)
    enter(window, page)
    look(window, "hostile")
    shown = {window.locator(".answer .text").nth(n).inner_text() for n in range(4)}
    assert any("</script><script>document.title" in text and "{{ 7 * 7 }}" in text for text in shown)
    assert any(text.count("x") == 3000 for text in shown) and any("RLO" in text and "ZWSP" in text and "NUL" in text for text in shown)
    assert window.title() == "Item 1" and window.locator("img, main script").count() == 0
    assert window.locator("form").count() == 1 and window.locator(".answer").count() == 4


def test_hostile_pair_at_both_widths(served, window, hostile):
    page = served(1, texts=hostile[1::2])
    enter(window, page)
    look(window, "hostile-pair")
    window.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    box = window.locator(".bar").bounding_box()
    assert box["y"] + box["height"] <= window.viewport_size["height"] + 1  # the choice is in sight
    window.evaluate("window.scrollTo(0, 0)")
    assert window.locator(".bar").bounding_box()["y"] < window.viewport_size["height"]
    window.keyboard.press("1")
    at(window, "/done")


def test_two_annotators_at_once_share_the_work(served, chromium):
    page = served(12)
    contexts = [chromium.new_context() for _ in range(2)]
    windows = [context.new_page() for context in contexts]
    for window, name in zip(windows, ("ada", "bob"), strict=True):
        enter(window, page, name)
    for number in range(1, 7):
        for window in windows:
            window.keyboard.press("1")
            window.wait_for_url(re.compile(rf"saved={number}$"))
    assert all("/done" in window.url for window in windows)
    given = page.store.given()
    assert len(given) == 12 == len({row.item for row in given})
    assert sorted(row.annotator for row in given) == ["ada"] * 6 + ["bob"] * 6
    for context in contexts:
        context.close()


def test_without_a_script_everything_can_be_done(served, chromium):
    page, ranking = served(2), served(1, k=3)
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    window = context.new_page()
    enter(window, page)
    window.locator(".guidelines summary").click()
    assert "customer assistant" in window.inner_text(".panel")
    window.locator(".guidelines summary").click()
    window.locator("button.g2").click()
    window.get_by_role("button", name="Skip for now").click()
    window.locator("button.g2").click()
    at(window, "/done")
    assert len(page.store.given()) == 2
    enter(window, ranking)
    for n, place in enumerate((2, 1, 2)):
        window.locator(f"#answer-{n} .places label").nth(place - 1).click()
    window.locator("button[name=save]").click()
    at(window, "/done")
    assert sorted(ranking.store.given()[0].ranks) == [0, 1, 1]
    context.close()


def test_a_server_that_is_killed_and_started_again_goes_on(make_task, chromium):
    from flows.cli.servers import answers, free_port

    store, port = make_task(6), free_port()
    context = chromium.new_context()
    window = context.new_page()
    for round_ in range(2):
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(store.path), str(port)], cwd=ROOT)
        try:
            end = time.monotonic() + 60
            while not answers(f"http://127.0.0.1:{port}/static/label.css"):
                assert server.poll() is None and time.monotonic() < end, "the page did not start"
                time.sleep(0.05)
            if round_ == 0:
                window.goto(f"http://127.0.0.1:{port}/")
                window.locator("#name").fill("ada")
                window.keyboard.press("Enter")
                at(window, "/item/1")
            else:
                window.goto(f"http://127.0.0.1:{port}/next")  # signed in as before
            for number in range(3 * round_ + 1, 3 * round_ + 4):
                at(window, f"/item/{number}")
                window.keyboard.press("2")
            at(window, "/done" if round_ else "/item/4")
        finally:
            os.kill(server.pid, signal.SIGKILL)
            server.wait()
    assert len(store.given()) == 6 and store.progress().enough
    context.close()
