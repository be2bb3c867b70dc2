"""Exported Llamas on the emulated npu: one op a layer, or op by op."""

from __future__ import annotations

from tests.emulator.emulated import passed


def test_programs_loaded_for_npu_give_what_float64_gives():
    num_passed, end = passed("npu", "tests/emulator/loaded_programs.py")
    assert num_passed >= 20, end
