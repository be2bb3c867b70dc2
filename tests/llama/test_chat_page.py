"""The page at /: used in Chromium as a person would, without a network beside the server."""

from __future__ import annotations

import re

import pytest

from examples.llama2_13b.serving.app import PAGE
from examples.llama2_13b.serving.served_model import ServedModel
from tests.browser import BROWSER, Browser
from tests.llama.served import ScriptedEngine, served, until
from tests.llama.test_report import Page

SAID = "[...document.querySelectorAll('.message p')].map((each) => each.textContent)"
IDLE = "document.querySelector('#stop').disabled"
in_chromium = pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")


@pytest.fixture(scope="module")
def model(tiny_folder):
    return ServedModel.from_folder(tiny_folder, "tiny", None)


def test_the_page_is_whole_and_fetches_nothing():
    text = PAGE.read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.fetched) == {"data:,"}  # no icon
    assert "url(" not in text and "@import" not in text and "innerHTML" not in text
    assert page.tags.count("script") == 1


@in_chromium
def test_a_conversation(model, tmp_path):
    engine = ScriptedEngine(word="<b>word</b> & ")
    # Held answers of three tokens, where the page asks for as many as there are.
    model = model.__class__(**{**vars(model), "max_new_tokens": 3})
    with served(engine, model) as (_, address), Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until("document.title === 'Chat with tiny'")
        browser.click("#text")
        browser.type("first line")
        browser.press("Enter", shift=True)
        browser.type("<i>second</i>")
        engine.gate.clear()
        browser.press("Enter")
        browser.until(f"!{IDLE}")
        assert browser.value("document.querySelector('#send').disabled")
        engine.gate.set()
        browser.until(IDLE)
        answer = engine.word * 3
        assert browser.value(SAID) == ["first line\n<i>second</i>", answer]
        status = browser.value("document.querySelector('#status').textContent")
        assert re.fullmatch(r"The answer was cut: no more tokens are allowed\. 3 tokens in [\d.]+ s", status)
        assert browser.value("document.activeElement.id") == "text"
        browser.type("again")
        browser.click("#send")
        browser.until(f"{SAID}.length === 4 && {IDLE}")
        turns = model.tokenizer.decode(engine.added[1].prompt)
        assert "first line\n<i>second</i>" in turns and answer in turns and turns.endswith("again")
        browser.click("#clear")
        assert browser.value(SAID) == [] and not browser.complaints()
        assert {each.partition("/v1")[0].rstrip("/") for each in browser.fetched()} <= {
            address,
            "data:,",
            "about:blank",
        }


@in_chromium
def test_stop_ends_an_answer_and_the_server_frees_it(model, tmp_path):
    engine = ScriptedEngine(seconds_per_step=0.02)
    with served(engine, model) as (_, address), Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until("document.title === 'Chat with tiny'")
        browser.click("#text")
        browser.type("go on")
        browser.press("Enter")
        browser.until(f"({SAID}[1] || '').includes('word word')")
        browser.click("#stop")
        browser.until(f"{IDLE} && document.querySelector('#status').textContent === 'Stopped.'")
        until(lambda: engine.cancelled == [engine.added[0].id])
        assert browser.value(f"{SAID}[1]").startswith("word word") and not browser.complaints()


@in_chromium
def test_errors_are_shown_and_a_key_is_asked_for(model, tmp_path):
    engine = ScriptedEngine()
    error = "document.querySelector('#error').textContent"
    serving = served(engine, model, capacity=1, api_key="sesame")
    with serving as (state, address), Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until(f"{error}.includes('API key is missing')")
        browser.click("#key")
        browser.type("sesame")
        browser.press("Enter")
        browser.until(f"document.title === 'Chat with tiny' && {error} === ''")
        assert browser.value("document.querySelector('#key_form').hidden")
        browser.click("#text")
        browser.type("long " * 400)
        browser.press("Enter")
        browser.until(f"{error}.includes('messages must leave room for an answer')")
        assert browser.value(SAID) == [] and browser.value("document.querySelector('#text').value.length") > 1900
        state.drain()
        browser.press("Enter")
        browser.until(f"{error} === 'Error: the server is stopping' || {error}.includes('cannot be reached')")
        assert not engine.added


@in_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_what_is_shown_can_be_read_and_named(model, tmp_path, dark):
    """Every control has a name, and text has the contrast that WCAG 2.2 asks for: 4.5 to 1."""
    with served(ScriptedEngine(), model) as (_, address), Browser(tmp_path / "profile", dark=dark) as browser:
        browser.open(address)
        browser.until("document.title === 'Chat with tiny'")
        found = browser.accessible()
        for role in ("textbox", "button", "log", "heading"):
            assert [name for kind, name in found if kind == role] and all(name for kind, name in found if kind == role)
        assert {"Send", "Stop", "New conversation"} <= {name for kind, name in found if kind == "button"}
        for selector, behind in (("body", "body"), ("#send", "#send"), ("#error", "body")):
            colours = [
                browser.value(f"getComputedStyle(document.querySelector('{each}')).{name}")
                for each, name in ((selector, "color"), (behind, "backgroundColor"))
            ]
            assert contrast(*colours) > 4.5, (selector, colours)
        assert (luminance(browser.value("getComputedStyle(document.body).backgroundColor")) < 0.5) == dark


def luminance(colour):
    """Source: WCAG 2.2, relative luminance."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first, second):
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)
