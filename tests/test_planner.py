"""`fusionkit plan mc2`: the formulas give the known figures, limits are named, and everything says "simulated"."""

from __future__ import annotations

import json
import re

import pytest
from fusionkit_planner import devices, llama, memory, overlap

from fusionkit.backend import DeviceModel
from fusionkit.cli import main

CARD = devices.find("910b")


def row(device, layer, direction, *, tokens=4096, world_size=8, reduces_all=False):
    make = llama.tensor_parallel_rows if reduces_all else llama.sequence_parallel_rows
    (found,) = [
        each
        for each in make(device, "bfloat16", tokens, world_size)
        if (each.layer, each.direction) == (layer, direction)
    ]
    return found.times


@pytest.mark.parametrize("tokens", [512, 4096, 131072])
@pytest.mark.parametrize("layer, ratio", [("qkv", 1.47), ("gate_up", 2.65), ("o_proj", 0.49), ("down", 1.33)])
def test_products_over_collectives_on_eight_910b(layer, ratio, tokens):
    """n / (t - 1) * bandwidth / FLOP/s, whatever the number of tokens: 7 links of 24 GB/s, 250 TFLOP/s."""
    times = row(CARD, layer, llama.FORWARD, tokens=tokens)
    assert times.product / times.collective == pytest.approx(ratio, abs=0.005)


def test_o_proj_hides_at_most_48_percent_under_its_own_product():
    times = row(CARD, "o_proj", llama.FORWARD)
    assert round(times.bound, 2) == 0.48 and times.expected <= times.bound
    with_dw = row(CARD, "o_proj", llama.DX_AND_DW)
    assert with_dw.product == 2 * times.product and with_dw.bound >= 0.95


def test_hidden_is_what_is_left_of_the_collective():
    """By hand: 8 us of product, 4 us of collective, t = 2, S = 4: one of eight products has nothing beside it."""
    times = overlap.Times(8.0, 4.0, 2, num_chunks=4, most_chunks=4)
    assert times.fused(4) == 8.0 and times.bound == 1.0
    slow = overlap.Times(8.0, 16.0, 2, num_chunks=4, most_chunks=4)
    assert slow.fused(4) == 17.0 and slow.bound == pytest.approx((1 - 1 / 8) / 2)
    assert slow.hidden(4, 0.01) < slow.bound


@pytest.mark.parametrize("chunks", [1, 2, 8])
@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_all_reduce_hides_at_most_all_but_its_last_chunk(chunks, c):
    times = overlap.Times(1.0, c, 4, chunks, chunks, reduces_all=True)
    assert times.bound == pytest.approx((1 - 1 / chunks) * min(1, 1 / c))


def test_filler_brings_the_bound_to_the_target():
    for reduces_all in (False, True):
        short = overlap.Times(8.0, 16.0, 2, 4, 4, reduces_all)
        steps = 4 if reduces_all else 8
        under_own = short.product * (1 - 1 / steps)
        assert under_own + short.filler_needed == pytest.approx(0.95 * short.collective)
    assert overlap.Times(8.0, 4.0, 2, 4, 4).filler_needed == 0


@pytest.mark.parametrize("c", [0.1, 0.4, 0.85, 0.99])
@pytest.mark.parametrize("world_size", [2, 8])
def test_number_of_chunks_is_the_smallest_by_the_rule(c, world_size):
    goal = max(min(0.05 * c, 1 - c), 1 - 2 * c)
    chunks = overlap.num_chunks(c, world_size, most=1000)
    assert 1 / (world_size * chunks) <= goal < (1 / (world_size * (chunks - 1)) if chunks > 1 else 1)
    assert overlap.num_chunks(c, world_size, most=2) <= 2
    assert overlap.num_chunks(1.5, world_size, most=7) == 7


def test_chunks_have_64_rows_and_256_kib():
    assert [overlap.most_chunks(rows, 10240) for rows in (1, 127, 128, 512)] == [1, 1, 2, 8]
    assert overlap.most_chunks(512, 1024) == 2


def test_a_mesh_keeps_c_for_every_world_size_and_a_switch_does_not():
    switch = DeviceModel("invented", {"bfloat16": 1e14}, 80e9, 1e12, 100e9, "invented")
    assert row(CARD, "down", llama.FORWARD, world_size=2).c == pytest.approx(row(CARD, "down", llama.FORWARD).c)
    two, eight = (row(switch, "down", llama.FORWARD, world_size=size).c for size in (2, 8))
    assert eight == pytest.approx(7 * two)


def test_memory_of_13_billion_parameters():
    assert llama.NUM_PARAMETERS == 13_015_864_320
    tensor, first, second, third = memory.plans(devices.find("h100"), 4096, 8)
    assert tensor.state_bytes == third.state_bytes == 2 * llama.NUM_PARAMETERS
    assert first.state_bytes == (4 + 12 / 8) * llama.NUM_PARAMETERS
    assert second.fits(devices.find("h100")) and not second.fits(devices.find("910b-32gb"))
    assert second.sending_s < tensor.sending_s


@pytest.mark.parametrize("device", ["910b", "h100", "H200"])
def test_every_part_says_simulated(device, capsys):
    assert main(["plan", "mc2", "--device", device, "--tp", "8"]) == 0
    parts = capsys.readouterr().out.split("\n\n")
    assert parts[0].startswith("Simulated: ") and len(parts) == 5
    assert all(part.startswith("Simulated") for part in (*parts[:1], *parts[2:]))
    assert "o_proj, forward, matmul_reduce_scatter: at most" in parts[3]
    assert "usually wins" in parts[4]


def test_advice_says_what_would_help(capsys):
    main(["plan", "mc2", "--device", "910b"])
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  o_proj, forward, matmul_red")
    ]
    assert "gate_up has 363 us to spare" in line and "a link of 47 GB/s" in line and "leaves c as it is" in line
    main(["plan", "mc2", "--device", "h100"])
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("  o_proj, forward, matmul_red")
    ]
    assert "Or tp 2: 100%." in line


def test_json_and_chart(tmp_path, capsys):
    numbers, picture = tmp_path / "sub" / "plan.json", tmp_path / "plan.png"
    assert main(["plan", "mc2", "--device", "910b", "--json", str(numbers), "--chart", str(picture)]) == 0
    read = json.loads(numbers.read_text())
    assert read["simulated"] is True and len(read["products"]) == 16 and len(read["plans"]) == 4
    assert read["products"][0]["c"] == pytest.approx(1 / 1.4746, rel=1e-3)
    assert picture.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--device", "toaster"],
            "--device must be one of A100-SXM4-80GB, .*910B-64GB.*, or how one begins, got 'toaster'",
        ),
        (["--device", "910b", "--tp", "3"], "--tp must be 2, 4 or 8, .*, got 3"),
        (["--device", "910b", "--tokens", "12"], "--tokens must be a multiple of --tp 8, got 12"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    assert main(["plan", "mc2", *options]) == 2
    assert re.search(message, capsys.readouterr().err)
