"""report.html: a page on its own, that says what a run did."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from examples.llama2_13b.sft import sft
from examples.llama2_13b.train import svg
from examples.llama2_13b.train.memory import Memory
from examples.llama2_13b.train.metrics import read_log
from examples.llama2_13b.train.report import Report
from tests.hanging import HANGING

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What makes a browser fetch something.
FETCHES = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
DEVICE = "tokens_per_second_per_device"
EMPTY = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Every tag is closed in order; what is fetched, and the text of each element by its tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tags, self.texts = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in FETCHES]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in FETCHES]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def report(**changes):
    log = [{"step": step, "loss": 4.0 - step, DEVICE: 100.0, "mfu": 0.5} for step in (1, 2, 3)]
    log[-1]["eval_loss"] = 1.5
    memories = [Memory(rank, rank, 10**9, 10**9, 2 * 10**9, 5 * 10**8, 0, 5 * 10**9, "the head") for rank in range(3)]
    values = {
        "title": "sft <b>&run",
        "ending": "Ended with step 3 of 3.",
        "log": log,
        "layout": {"data": 1, "pipeline": 3},
        "settings": {"seed": 42, "output_dir": "</td><script>"},
        "predicted": memories,
        "measured": [5.1e9, 5e9, 4.9e9],
        "measured_of": "of the device",
    }
    return Report(**{**values, **changes})


def test_the_page_is_whole_and_fetches_nothing():
    text = report().page()
    page = Page(text)
    assert not page.fetched and "url(" not in text and "@import" not in text and "script" not in page.tags
    assert page.tags.count("svg") == 4 and page.texts["h1"] == ["sft <b>&run"]
    cells = page.texts["td"]
    assert {"--seed", "42", "</td><script>", "5.100", "the head"} <= set(cells)
    shown = page.texts["text"]
    assert "training, now 1" in shown and "evaluation, now 1.5" in shown and "tokens/s/device, now 100" in shown


def test_a_page_without_steps_or_prediction_is_whole():
    page = Page(report(log=[], predicted=[], measured=[0.0]).page())
    assert page.tags.count("svg") == 4


def test_what_was_not_measured_is_no_zero():
    """A run that had done all its steps and only writes its model again."""
    for changes in ({}, {"predicted": []}):
        page = Page(report(measured=[0.0, 0.0, 0.0], **changes).page())
        assert page.texts["td"].count("not measured") == 3 and "0.000" not in page.texts["td"][:4]
        assert "measured" not in page.texts["text"]


def test_what_is_not_finite_is_left_out_of_a_chart():
    log = [{"step": step, "loss": loss} for step, loss in enumerate((2.0, float("nan"), float("inf"), 1.0))]
    text = report(log=log).page()
    assert "nan" not in text.lower() and "inf," not in text
    Page(text)


def test_a_chart_has_the_largest_value_at_its_top_and_zero_at_its_bottom():
    line = svg.lines("loss", {"training": [(1, 4.0), (2, 0.0), (3, 2.0)]})
    assert 'points="64.0,12.0 309.0,210.0 554.0,111.0"' in line
    assert [part.split('"')[0] for part in svg.bars("GB", "01", {"peak": [2.0, 1.0]}).split('height="')[1:]] == [
        "198.0",
        "99.0",
    ]


def charts(text):
    """The tree of each chart, by its title."""
    trees = [ElementTree.fromstring(part) for part in re.findall("<figure>.*?</figure>", text)]
    return {tree.find("figcaption").text: tree.find("svg") for tree in trees}


def texts(chart):
    return [(float(text.get("x")), float(text.get("y")), text.text) for text in chart.findall("text")]


def points(chart, colour):
    """(step, value) as somebody reads them: by the texts at the axes."""
    (*_, zero), (*_, half), (*_, top), (left, _, first), (*_, last), *_ = texts(chart)
    (bottom, _), (middle, _), (high, _) = ((y - 4, x) for x, y, _ in texts(chart)[:3])
    assert (float(zero), float(half), middle) == (0, float(top) / 2, (bottom + high) / 2)
    first, last, right = float(first.removeprefix("step ")), float(last), svg.WIDTH - 6
    found = [circle for circle in chart.findall("circle") if circle.get("fill") == colour]
    steps = [first + (float(one.get("cx")) - left) / (right - left) * (last - first) for one in found]
    return list(
        zip(steps, [(bottom - float(one.get("cy"))) / (bottom - high) * float(top) for one in found], strict=True)
    )


def test_the_log_can_be_read_from_the_charts():
    log = [
        {"step": 5, "loss": 4.0, "tokens_per_second": 200.0, DEVICE: 100.0, "mfu": 0.5},  # on two processes
        {"step": 6, "loss": 1.0, "tokens_per_second": 600.0, DEVICE: 200.0, "mfu": 0.2, "eval_loss": 2.0},
        {"step": 8, "loss": 3.0, "tokens_per_second": 450.0, DEVICE: 150.0, "mfu": 0.4, "eval_loss": 1.0},
    ]
    found = charts(report(log=log).page())
    training, evaluation = svg.COLOURS
    for title, colour, expected in (
        ("loss per token (nats)", training, [(5, 4), (6, 1), (8, 3)]),
        ("loss per token (nats)", evaluation, [(6, 2), (8, 1)]),
        ("tokens/s/device", training, [(5, 100), (6, 200), (8, 150)]),
        ("MFU (%)", training, [(5, 50), (6, 20), (8, 40)]),
    ):
        largest = max(value for _, value in expected)
        np.testing.assert_allclose(points(found[title], colour), expected, rtol=0, atol=1e-2 * largest, err_msg=title)


def memory_of_three():
    """Every number another."""
    return [
        Memory(rank, 2 - rank, 10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9, 0, (6 + rank) * 10**9, "x") for rank in range(3)
    ]


def test_each_rank_has_its_bars():
    chart = charts(report(predicted=memory_of_three(), measured=[5e9, 4e9, 3e9]).page())["peak memory by rank (GB)"]
    sizes = {"predicted": [6, 7, 8], "measured": [5, 4, 3]}
    wanted = {f"{rank}, {name}: {size}": size for name, each in sizes.items() for rank, size in enumerate(each)}
    bars = {
        bar.find("title").text: [float(bar.get(name)) for name in ("x", "width", "height")]
        for bar in chart.findall("rect")
    }
    tallest = max(height for _, _, height in bars.values())
    assert {name: height / tallest * 8 for name, (_, _, height) in bars.items()} == pytest.approx(wanted, abs=0.01)
    ends = sorted((x, x + width) for x, width, _ in bars.values())
    assert all(end <= start for (_, end), (start, _) in zip(ends, ends[1:], strict=False))  # side by side
    middles = {text: x for x, _, text in texts(chart) if text in "012" and x > svg.LEFT}
    for name, (x, width, _) in bars.items():
        assert min(middles, key=lambda rank: abs(middles[rank] - x - width / 2)) == name[0]
    assert [bar.get("fill") for bar in chart.findall("rect")] == [colour for colour in svg.COLOURS for _ in range(3)]
    shown = {text.text: text.get("fill") for text in chart.findall("text") if text.text in sizes}
    assert shown == dict(zip(sizes, svg.COLOURS, strict=True))


def test_the_memory_of_each_rank_is_in_the_table():
    def rows(page):
        table = re.search("<h2>Memory</h2>(.*?)</table>", page, re.DOTALL)[1]
        return [re.findall("<t[dh]>(.*?)</t[dh]>", row) for row in table.split("</tr>")]

    head, *ranks, _ = rows(report(predicted=memory_of_three(), measured=[5e9, 4e9, 3e9]).page())
    assert [dict(zip(head, rank, strict=True)) for rank in ranks] == [
        {"rank": str(rank), "stage": str(2 - rank), "predicted": f"{6 + rank}.000", "measured": f"{5 - rank}.000",
         "worst moment": "x", "parameters": "1.000", "gradients": "2.000", "optimizer": "3.000",
         "activations": "4.000"}
        for rank in range(3)
    ]  # fmt: skip
    head, *ranks, _ = rows(report(predicted=[], measured=[5e9, 4e9]).page())
    assert [dict(zip(head, rank, strict=False))["measured"] for rank in ranks] == ["5.000", "4.000"]


def test_every_text_of_a_page_is_escaped():
    """Ranks, moments and a timeline come from the code today, titles and flags from users."""
    bad = "<i>&"
    values = {name: bad for name in ("title", "ending", "measured_of")} | {"timeline": [bad], "layout": {bad: bad}}
    memories = [Memory(bad, bad, 1, 1, 1, 1, 1, 1, bad)]
    text = report(**values, settings={bad: bad}, predicted=memories, measured=[1.0]).page()
    text += svg.bars(bad, [bad], {bad: [1.0]}) + svg.lines(bad, {bad: [(1, 1.0)]})
    assert "<i" not in text and text.count("&lt;i&gt;&amp;") == 21


def test_a_run_writes_its_page(sft_flags, no_measuring, no_drawing, tmp_path):
    assert sft(sft_flags(max_steps=3)) == 0
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert page.texts["h1"] == ["sft run"] and "Ended with step 3 of 3." in page.texts["p"]
    assert "--learning_rate" in page.texts["td"]


def test_a_run_that_only_measures_writes_figures_for_programs_and_no_model(
    sft_flags, no_measuring, no_drawing, tmp_path, capsys
):
    assert sft(sft_flags(max_steps=2, warmup_steps=1, save_model=False)) == 0
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert figures["ending"] == "Ended with step 2 of 2." and set(figures["layout"].values()) == {1}
    assert figures["memory"]["measured"] == [log[-1]["peak_memory"]]
    (predicted,) = figures["memory"]["predicted"]
    assert predicted["peak"] > predicted["parameters"] == predicted["gradients"] > 0
    assert all(0 < line["seconds"] < 600 for line in log)
    assert {path.name for path in (tmp_path / "run").iterdir()} - {".lock"} == {
        "log.jsonl", "loss.png", "report.html", "report.json"
    }  # fmt: skip
    assert "log.jsonl, and no model as --save_model is false" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--save_dtype must be left out without a model to save, got float32"):
        sft_flags(save_model=False, save_dtype="float32")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_a_browser_shows_the_page(tmp_path):
    """The browser's own tree after loading, without a network."""
    report().write(tmp_path / "report.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [BROWSER, *options, "--proxy-server=127.0.0.1:9", "--dump-dom", (tmp_path / "report.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=HANGING)
    assert shown.returncode == 0, shown.stderr[-2000:]
    assert shown.stdout.count("<svg") == 4 and "<h1>sft &lt;b&gt;&amp;run</h1>" in shown.stdout
