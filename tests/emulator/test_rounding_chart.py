"""The picture of how rounding grows."""

from __future__ import annotations

from xml.etree import ElementTree

from tests.emulator import rounding_chart

TEXT = "{http://www.w3.org/2000/svg}text"


def drawn(path, growth, bounds=None):
    rounding_chart.draw(path, "50 steps", growth, bounds or {10: 1e-5, 50: 1e-4})
    return {element.text for element in ElementTree.parse(path).iter(TEXT)}


def test_every_layout_and_bound_is_in_a_small_picture(tmp_path):
    growth = {f"layout {number}": [0.0, *(number * 1e-8 * step for step in range(1, 50))] for number in range(1, 9)}
    words = drawn(tmp_path / "one.svg", growth)
    assert words >= {"50 steps", *growth, "required up to step 10: 1e-05", "required up to step 50: 0.0001"}
    assert (tmp_path / "one.svg").stat().st_size < 40_000
    drawn(tmp_path / "again.svg", growth)
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "one.svg").read_bytes()


def test_a_bound_of_steps_that_no_layout_took_is_left_out(tmp_path):
    assert not any("step 50:" in word for word in drawn(tmp_path / "one.svg", {"a layout": [1e-8] * 10}))
