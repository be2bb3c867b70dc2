"""`--rehearse --trace`: a step in simulated time. Times are computed by hand from FLOPs, bytes and the link."""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from fusionkit_emulator import prices, timeline
from fusionkit_emulator.trace_record import Call, Kernel, Tensor
from fusionkit_planner.rates import Level, Rates

from fusionkit.cli import main
from tests.emulator.emulated import run
from tests.launch import LAUNCH

# A product of 1e9 FLOPs takes 1 s, 1e6 bytes take 1 s in memory and 10 s on the link, a message 0.5 s more.
RATES = Rates("machine", "float32", 1e9, 1e6, 1e9, levels=(Level("node", 4, 1e5, 0.5),), sources={"levels": "a wire"})
RATES_FILE = {**RATES.as_json(), "peak_flops": 1e12, "memory_bandwidth": 1e10}


def kernel(name, inputs, outputs):
    return {"kernel": name, "pass": "forward", "line": "a.py:1", "inputs": inputs, "outputs": outputs}


def call(op, meeting="g", size=2, num_bytes=100_000):
    return {"call": op, "meeting": meeting, "size": size, "bytes": num_bytes, "line": "a.py:2"}


def record(folder, rank, definitions, events, step=2, updates=1):
    """As emulator/csrc/rehearsal/trace.cc writes it; the process has its rank's number."""
    (folder / f"{rank}.definitions").write_text("".join(json.dumps(each) + "\n" for each in definitions))
    header = np.array([step, len(events), updates, 0], np.int64).tobytes()
    (folder / f"{rank}.{step % 2}.events").write_bytes(header + np.array(events, np.int32).tobytes() + bytes(64))


def written(folder, ranks=2):
    """(the words, the events by rank)."""
    told = list(timeline.write(str(folder / "t.json"), folder, [(rank, rank) for rank in range(ranks)], RATES))
    return told, by_rank(folder / "t.json")


def by_rank(path):
    trace, found = json.loads(path.read_text()), defaultdict(list)
    assert {"ph", "ts", "dur", "pid", "tid", "name"} <= set.intersection(*map(set, trace["traceEvents"]))
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            assert event["dur"] > 0
            found[event["pid"]].append(event)
    assert "simulated" in trace["otherData"]["title"] and trace["otherData"]["sources"]
    assert all("simulated" in e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name")
    return found


def named(events, name):
    return [event for event in events if event["name"] == name and event["tid"] != timeline.WHOLE]


def end(event):
    return (event["ts"] + event["dur"]) * 1e-6


def parts(events):
    """Seconds of the lane that tiles the step."""
    found = defaultdict(float)
    at = 0.0
    for event in sorted((e for e in events if e["tid"] == timeline.WHOLE), key=lambda e: e["ts"]):
        assert event["ts"] * 1e-6 == pytest.approx(at, abs=1e-9)
        found[event["name"]] += event["dur"] * 1e-6
        at = end(event)
    return found


WRITES = kernel("relu", [[4, 125_000]], [[4, 125_000]])  # 1 s
STREAM, OTHER = 0, 1
KERNEL, CALL, RECORD, WAIT, SYNC = 0, 1, 2, 3, 4


def test_a_rank_with_twice_the_work_delays_its_peer(tmp_path):
    """A sum of 1e5 bytes over two ranks sends half of them twice: 2 x (0.5 s + 0.5 s)."""
    for rank in range(2):
        work = [(KERNEL, 0, STREAM, 0)] * (1 + rank)
        record(tmp_path, rank, [WRITES, call("all_reduce")], [*work, (CALL, 1, STREAM, 7)])
    told, events = written(tmp_path)
    assert [end(one) for rank in range(2) for one in named(events[rank], "all_reduce")] == pytest.approx([4.0, 4.0])
    assert end(named(events[0], "waits: all_reduce")[0]) == pytest.approx(2.0)
    assert not named(events[1], "waits: all_reduce")
    assert parts(events[0]) == pytest.approx({"compute": 1, "waiting": 1, "exposed communication": 2})
    assert parts(events[1]) == pytest.approx({"compute": 2, "exposed communication": 2})
    assert "step 2 at the rates of machine takes 4.000 s" in told[0] and "rate of links: a wire" in told


def test_a_collective_on_another_stream_is_hidden_by_compute(tmp_path):
    """The second kernel runs beside it, and the third waits for it by an event."""
    events = [(KERNEL, 0, STREAM, 0), (RECORD, 5, STREAM, 0), (WAIT, 5, OTHER, 0), (CALL, 1, OTHER, 1)]
    events += [(RECORD, 6, OTHER, 0), (KERNEL, 0, STREAM, 0), (WAIT, 6, STREAM, 0), (KERNEL, 0, STREAM, 0)]
    for rank in range(2):
        record(tmp_path, rank, [WRITES, call("all_reduce")], events)
    _, found = written(tmp_path)
    assert parts(found[0]) == pytest.approx({"compute": 3, "exposed communication": 1})
    assert named(found[0], "all_reduce")[0]["ts"] == pytest.approx(1e6)


def test_a_host_that_waits_issues_nothing_meanwhile(tmp_path):
    events = [(KERNEL, 0, STREAM, 0), (SYNC, -1, STREAM, 0), (KERNEL, 0, OTHER, 0)]
    record(tmp_path, 0, [WRITES], events)
    assert [one["ts"] for one in named(written(tmp_path, 1)[1][0], "relu")] == pytest.approx([0, 1e6])


def test_messages_that_cross_in_a_batch_do_not_wait_for_each_other(tmp_path):
    """A message of 1e5 bytes takes 1.5 s."""
    for rank in range(2):
        calls = [call("send", f"g:{rank}>{1 - rank}"), call("recv", f"g:{1 - rank}>{rank}")]
        record(tmp_path, rank, calls, [(CALL, 0, STREAM, 1), (CALL, 1, STREAM, -2)])
    told, found = written(tmp_path)
    assert parts(found[0]) == pytest.approx({"exposed communication": 1.5})
    assert not any("no partner" in line for line in told)


def test_a_call_without_its_partner_is_counted(tmp_path):
    record(tmp_path, 0, [call("all_reduce")], [(CALL, 0, STREAM, 1)])
    record(tmp_path, 1, [WRITES], [(KERNEL, 0, STREAM, 0)])
    assert "1 calls had no partner within the step; they begin without" in written(tmp_path)[0]


def test_a_long_step_is_cut_in_the_file_and_not_in_the_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(timeline, "MOST", 5)
    record(tmp_path, 0, [WRITES], [(KERNEL, 0, STREAM, 0)] * 20)
    told, found = written(tmp_path, 1)
    assert len(found[0]) == 5 and "takes 20.000 s" in told[0]
    assert "is cut after 5 events" in told[-1]


def test_the_last_step_that_all_have_is_taken(tmp_path):
    for rank, steps in enumerate([(2, 3), (1, 2)]):
        for step in steps:
            record(tmp_path, rank, [WRITES], [(KERNEL, 0, STREAM, 0)] * step, step)
    assert "step 2 at the rates of machine takes 2.000 s" in written(tmp_path)[0][0]
    record(tmp_path, 0, [WRITES], [(KERNEL, 0, STREAM, 0)], 4)
    record(tmp_path, 0, [WRITES], [(KERNEL, 0, STREAM, 0)], 5)
    assert "no step was recorded by all ranks" in written(tmp_path)[0][0]


def test_a_process_that_gives_its_device_nothing_is_no_rank(tmp_path):
    """A launcher has the number of rank 0."""
    record(tmp_path, 0, [WRITES], [(KERNEL, 0, STREAM, 0)])
    told = list(timeline.write(str(tmp_path / "t.json"), tmp_path, [(0, 0), (7, 0)], RATES))
    assert "takes 1.000 s" in told[0]


def test_a_vendors_op_sends_and_multiplies(tmp_path):
    """[1000, 500] times [500, 50] is 0.05 s, and its sum over two ranks of 1e5 bytes 2 s."""
    fused = kernel("fused_mm_allreduce", [[2, 1000, 500], [2, 500, 50]], [[2, 1000, 50]])
    for rank in range(2):
        record(tmp_path, rank, [fused, call("fused", num_bytes=0)], [(CALL, 1, -1, 1), (KERNEL, 0, STREAM, 0)])
    _, found = written(tmp_path)
    assert parts(found[1]) == pytest.approx({"compute": 0.05, "exposed communication": 2})


def tensors(*shapes):
    return tuple(Tensor(2, shape) for shape in shapes)


@pytest.mark.parametrize(
    "name, inputs, outputs, flops",
    [
        ("matmul", [(2, 3, 10), (10, 7)], [(2, 3, 7)], 2 * 6 * 10 * 7),
        ("matmul", [(3, 10), (7, 10)], [(3, 7)], 2 * 3 * 10 * 7),  # transposed
        ("matmul", [(4, 5, 3, 10), (4, 5, 10, 7)], [(4, 5, 3, 7)], 2 * 20 * 3 * 10 * 7),
        ("matmul_grad", [(3, 10), (10, 7), (3, 7)], [(3, 10), (10, 7)], 2 * 2 * 3 * 10 * 7),
        ("matmul_grad", [(3, 10), (10, 7), (3, 7)], [(10, 7)], 2 * 3 * 10 * 7),
        ("fused_mm_allreduce", [(3, 10), (10, 7)], [(3, 7)], 2 * 3 * 10 * 7),
        ("fused_allgather_mm", [(3, 10), (10, 7)], [(6, 7), (6, 10)], 2 * 6 * 10 * 7),
        ("flash_attention_npu", [(2, 8, 4, 16)] * 3, [(2, 8, 4, 16), (2, 4, 8, 8)], 4 * 2 * 4 * 16 * 36),
        # of 8 x 8 pairs 36 are attended
        ("flash_attention_npu", [(2, 8, 4, 16)] * 4, [(2, 8, 4, 16)] * 3, 2.5 * 4 * 2 * 4 * 16 * 36),
    ],
)
def test_flops_are_those_by_hand(name, inputs, outputs, flops):
    seconds, how = prices.of_kernel(Kernel(name, "forward", "", tensors(*inputs), tensors(*outputs)), RATES)
    assert seconds == pytest.approx(flops / 1e9) and how in ("products", "attention")


@pytest.mark.parametrize(
    "name, inputs, outputs, num_bytes, how",
    [
        ("add", [(10,), (10,)], [(10,)], 60, "bytes"),
        ("embedding", [(3,), (1000, 10)], [(3, 10)], 120, "bytes"),
        ("slice_grad", [(1000,), (10,)], [(1000,)], 2020, "bytes"),
        ("einsum", [(10,), (10,)], [(10,)], 60, "unknown"),
    ],
)
def test_other_kernels_take_their_bytes(name, inputs, outputs, num_bytes, how):
    found = prices.of_kernel(Kernel(name, "forward", "", tensors(*inputs), tensors(*outputs)), RATES)
    assert found == (pytest.approx(num_bytes / 1e6), how)


@pytest.mark.parametrize(
    "op, seconds",
    [("all_gather", 3 * 1.5), ("reduce_scatter", 3 * 1.5), ("all_reduce", 6 * 0.75), ("broadcast", 1.5)],
)
def test_collectives_take_their_rings(op, seconds):
    """Of four ranks with 1e5 bytes each, at 1 s for 1e5 bytes and 0.5 s a message."""
    assert prices.of_call(Call(op, "g", 4, 100_000, ""), range(4), RATES) == pytest.approx(seconds)


def test_each_vendors_op_has_a_price():
    """An op that nobody priced would pass for one that only moves bytes."""
    text = "".join(path.read_text() for path in (Path(__file__).parents[2] / "emulator/csrc/ops").rglob("*.cc"))
    ops = set(re.findall(r'k\w+\[\] = "(\w+)"', text)) | set(re.findall(r'launch\("(\w+)"', text))
    priced = {*prices.PRODUCTS, *prices.FUSED, *prices.ATTENTION, *prices.VENDORS, *prices.UNKNOWN}
    assert len(ops) > 8 and ops <= priced, ops - priced


def test_two_ranks_of_a_script(tmp_path):
    """Rank 1 multiplies twice as often; the file's rates make a product of 4096 x 1024 x 1024 take 8.6 ms."""
    rates, trace, root = tmp_path / "rates.json", tmp_path / "t.json", Path(__file__).parents[2]
    rates.write_text(json.dumps(RATES_FILE))
    options = ("--rehearse", "--devices", "2", "--trace", str(trace), "--device", str(rates))
    script = (str(Path(__file__).with_name("timeline_steps.py")), "2")
    launch = (LAUNCH, "--devices", "0,1", "--log_dir", str(tmp_path / "log"))
    ran = run("npu", sys.executable, *launch, *script, options=options, PYTHONPATH=str(root))
    assert ran.returncode == 0 and "simulated step, nothing was measured: step 2" in ran.stderr, ran.stderr
    events, product = by_rank(trace), 2 * 4096 * 1024 * 1024 / 1e12
    for rank, (forward, backward) in enumerate([(1, [1]), (2, [2, 1])]):
        assert [e["dur"] * 1e-6 for e in named(events[rank], "matmul")] == pytest.approx([product] * forward)
        found = [e["dur"] * 1e-6 for e in named(events[rank], "matmul_grad")]
        assert found == pytest.approx([product * count for count in backward])
        assert "timeline_steps.py" in named(events[rank], "matmul")[0]["args"]["line"]
    sums = [named(events[rank], "all_reduce") for rank in range(2)]
    assert [end(each) for each in sums[0]] == pytest.approx([end(each) for each in sums[1]])
    assert sums[0][0]["dur"] * 1e-6 == pytest.approx(2 * (2**21 / 1e5 + 0.5))  # 4 MiB
    assert parts(events[0])["waiting"] > 3 * product and parts(events[1])["waiting"] == pytest.approx(0)
    for rank in range(2):
        assert sum(parts(events[rank]).values()) == pytest.approx(max(end(e) for e in events[1]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["npu", "--trace", "t.json", "true"], "--trace must come with --rehearse"),
        (["npu", "--rehearse", "--devices", "2", "--device", "910b", "true"], "must come with --trace"),
        (["gcu", "--rehearse", "--devices", "2", "--trace", "t", "true"], "--device must be given with --trace on gcu"),
        (["npu", "--rehearse", "--devices", "64", "--trace", "t", "true"], "at most 8, which the rates of 910B-64GB"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capfd):
    assert main(["emulate", *arguments]) == 2
    assert message in capfd.readouterr().err
