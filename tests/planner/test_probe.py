"""`fusionkit plan probe`: what it times, how it fits links, and that the search takes its file."""

from __future__ import annotations

import json
import re
import time

import paddle
import pytest
from fusionkit_planner import architecture, known_rates, probe, probe_shapes, probe_worker, rates

from fusionkit.cli import main
from tests.prose import ROOT

CONFIG = ROOT / "examples/llama2_13b/configs/llama2_13b.json"
TINY = ROOT / "examples/llama2_13b/configs/tiny.json"


@pytest.mark.parametrize("devices, bandwidth, latency", [(2, 3e9, 2e-5), (4, 1e8, 0.0), (8, 2e11, 1e-6)])
def test_rate_and_latency_are_found_again(devices, bandwidth, latency):
    """From times that the formula of `Rates.gather_seconds` gives."""
    made = rates.Rates("x", "bfloat16", 1e12, 1e11, 1e9, levels=(rates.Level("host", devices, bandwidth, latency),))
    measured = [(size, made.gather_seconds(devices, size)) for size in probe_shapes.MESSAGES]
    found = probe.fitted(devices, measured)
    assert found[0] == pytest.approx(bandwidth, rel=1e-6) and found[1] == pytest.approx(latency, rel=1e-3, abs=1e-12)


def test_times_that_no_line_fits_give_a_rate_and_no_latency_below_zero():
    bandwidth, latency = probe.fitted(2, [(4096, 1e-9), (1 << 20, 1.0), (1 << 24, 1.0)])
    assert bandwidth > 0 and latency >= 0


@pytest.mark.parametrize("flops", [1e10, 1e12, 6e14])
def test_sizes_grow_with_the_machine_and_stay_within_its_memory(flops):
    shapes = probe_shapes.products(flops, 1e9)
    assert shapes == sorted(shapes, key=probe_shapes.num_flops) and len(shapes) == len(set(shapes))
    others = [shape for shape in shapes if shape != probe_shapes.REFERENCE]
    assert all(
        probe_shapes.num_flops(shape) <= flops * 0.4 and probe_shapes.num_bytes(shape) <= 1e9 for shape in others
    )
    assert len(shapes) < len(probe_shapes.products(flops * 100, 1e9)) or flops == 6e14
    assert probe_shapes.attention_rows(flops) <= probe_shapes.attention_rows(100 * flops)


def test_a_models_own_products_are_timed_too():
    shapes = probe_shapes.products(1e15, 4e9, architecture.read(CONFIG))
    assert (4096, 5120, 3 * 5120) in shapes and (4096, 13824 // 8, 5120) in shapes  # qkv; down_proj, tensor parallel 8
    assert (5120, 4096, 2 * 13824 // 4) in shapes  # the gradient of gate_up's weight, tensor parallel 4


def test_two_processes_are_measured_and_the_search_takes_the_file(tmp_path, capfd):
    file, plan = tmp_path / "sub" / "probe.json", tmp_path / "plan.json"
    assert main(["plan", "probe", "--json", str(file), "--devices", "2", "--seconds", "2"]) == 0
    text = capfd.readouterr().out
    found = rates.read(file)
    assert found.name in text and re.search(r"2 devices: [\d.]+ GB/s each", text)
    assert 0 < found.level(2).processor_seconds < 1e-6 and 0 < found.socket_seconds < 1e-6
    assert found.level(2).bandwidth > 0 and found.launch_seconds > 0 and found.memory_bandwidth > 0
    assert found.peak_flops == max(one.flops for one in found.products) and found.attention_flops > 0
    assert found.sources.keys() >= {"products", "peak_flops", "memory_bandwidth", "levels", "launch_seconds"}
    assert all(f"measured on {found.name}" in found.sources[name] for name in ("products", "levels"))
    train = ["plan", "train", "--model", str(TINY), "--devices", "2", "--device", str(file), "--json", str(plan)]
    assert main([*train, "--global-batch", "4"]) == 0
    text = capfd.readouterr().out
    assert "No product was measured" not in text and f"measured on {found.name}" in text
    assert json.loads(plan.read_text())["question"]["rates"]["launch_seconds"] == found.launch_seconds
    assert main([*train, "--devices", "4"]) == 2
    assert "--devices must be at most 2" in capfd.readouterr().err


def test_one_thread_counts_its_processor_time(monkeypatch):
    """So what other programs take from its core is left out, here a sleep. Several threads need a clock."""

    def call():
        time.sleep(0.02)
        return paddle.zeros([1])

    for threads, least in (("1", 0.0), ("2", 0.02)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert least <= probe_worker.timed(call) < least + 0.02


def test_a_named_link_is_one_between_hosts_whose_cores_move_the_bytes(tmp_path):
    """As the probe found it; cards have engines for that."""
    links = (rates.Level("host", 2, 1e9, 0.0),)
    made = rates.Rates("x", "bfloat16", 1e12, 1e11, 1e9, levels=links, socket_seconds=7e-9)
    file = tmp_path / "probe.json"
    file.write_text(json.dumps(made.as_json()))
    for links, expected in (([], 0.0), (["2:0.1"], 7e-9)):
        assert known_rates.find(str(file), links).level(2).processor_seconds == expected
    assert known_rates.find("910b", ["16:25"]).level(16).processor_seconds == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--devices", "0"], "--devices must be at least 1, got 0"),
        (["--seconds", "0"], "--seconds must be a finite number above 0, got 0"),
        (["--seconds", "inf"], "--seconds must be a finite number above 0, got inf. About 110"),
        (["--model", "nothing"], "--model must be a Hugging Face folder"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path, capsys):
    assert main(["plan", "probe", "--json", str(tmp_path / "probe.json"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_process_that_ends_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(probe, "MODULE", "fusionkit_planner.nothing")
    assert main(["plan", "probe", "--json", str(tmp_path / "probe.json")]) == 2
    assert "a process ended with status 1. " in (error := capsys.readouterr().err) and "nothing" in error
