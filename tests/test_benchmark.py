"""`fusionkit bench`: it times what it says, beside the ceiling, and judges ratios rightly. No figure is asserted."""

import contextlib
import json
import os
import re
import signal

import numpy as np
import pytest
from fusionkit_bench import chart, contestants, processor, record, rounds, target, worker
from fusionkit_bench.result import Result
from fusionkit_bench.subject import FORWARD, TRAINING, Subject, leading, subjects
from fusionkit_bench.target import Target
from pytest_benchmark.stats import Stats

import fusionkit
from fusionkit import cli
from fusionkit.ops import load_spec
from fusionkit.spec import Cost
from tests.op_names import LOCAL_OPS

SMALL = Subject("fusion_rms_norm", "T8xH5120", "bfloat16")


def seconds(*values):
    stats = Stats()
    for value in values:
        stats.update(value)
    return stats


def result(case="T8xH5120", **medians):
    """A result whose contestants took so many seconds forward."""
    named = {name.replace("_", " "): value for name, value in medians.items()}
    subject = Subject("fusion_rms_norm", case, "bfloat16")
    return Result(subject, costs(subject), False, {(k, FORWARD): seconds(v) for k, v in named.items()})


def costs(subject):
    dims = subject.dims(subject.arguments())
    return {way: subject.cost(dims, way) for way in subject.directions}


@pytest.mark.parametrize("op", LOCAL_OPS)
def test_every_op_is_timed_at_the_sizes_of_llama(op):
    benchmarks = load_spec(op).benchmarks
    assert len({each.case.name for each in benchmarks}) == len(benchmarks) > 0


def test_one_command_prints_the_table_and_writes_picture_and_record(tmp_path, capsys):
    options = ["--case", "T8xH5120", "--dtype", "bfloat16", "--rounds", "2", "--threads", "1"]
    files = {name: tmp_path / f"{name}.out" for name in ("table", "chart", "json")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert cli.main(["bench", "fusion_rms_norm", *options, *written]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| fusion_rms_norm \| T8xH5120 \| bfloat16 \| forward \+ backward +\| warm", printed)
    assert "not measured" not in printed
    assert files["table"].read_text() == printed
    assert files["chart"].read_bytes().startswith(b"\x89PNG")
    record = json.loads(files["json"].read_text())
    assert record["machine_info"]["processor"] == processor.name() and printed.startswith(processor.name())
    timed = {each["name"] for each in record["benchmarks"]}
    assert timed >= {"kernel", "op", "stream", "paddle", "paddle (tuned)", "torch", "torch (tuned)"}


PEERS = {"torch": 6.0, "torch slower": 8.0, "paddle": 10.0}


def made_up(subject, peers=PEERS, cold=False):
    """Ceiling 2, kernel 4, op 5 seconds: in multiples of the ceiling 2 and 2.5, and the peers' 3 and 5."""
    times = {"stream": 2.0, "kernel": 4.0, "op": 5.0, contestants.OP_AS_IT_COMES: 5.0} | peers
    stats = {(name, way): seconds(value) for name, value in times.items() for way in subject.directions}
    return Result(subject, dict.fromkeys(subject.directions, Cost(1.0, 2.0, 3.0)), cold, stats)


def test_the_quick_selection_has_every_op_once_forward_and_backward():
    quick = leading(subjects())
    assert sorted(each.op_name for each in quick) == sorted(LOCAL_OPS)
    for each in quick:
        spec = load_spec(each.op_name)
        assert each.case_name == spec.benchmarks[0].case.name and each.dtype == "bfloat16"
        assert re.search("5120|13824|H40|S1024", each.case_name), "Llama 2 13B's sizes"
        assert each.directions == ((FORWARD, TRAINING) if spec.reference_vjp else (FORWARD,))
    assert leading([Subject("swiglu", "T8xI13824", "float32")]) == [Subject("swiglu", "T8xI13824", "float32")]


class NoWorker:
    def __init__(self, *arguments):
        pass

    def close(self):
        pass


def test_quick_figures_say_that_they_are(tmp_path, monkeypatch, capsys):
    asked = []

    def measure(workers, subject, number):
        asked.append((subject, number))
        yield made_up(subject)

    monkeypatch.setattr(rounds, "measure", measure)
    monkeypatch.setattr(worker, "Worker", NoWorker)
    files = {name: tmp_path / f"{name}.out" for name in ("table", "json", "chart")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert cli.main(["bench", *LOCAL_OPS, "--quick", *written]) == 0
    assert asked == [(subject, 3) for subject in leading(subjects(list(LOCAL_OPS)))]
    printed = capsys.readouterr().out
    assert "quick: one call of each op, 3 rounds" in printed.splitlines()[0] and "--quick: " in printed
    assert files["table"].read_text() == printed
    title, results = record.read(files["json"])
    assert "quick: one call of each op, 3 rounds" in title and [(each.subject, 3) for each in results] == asked
    assert cli.main(["bench", "swiglu", "--quick", "--case", "T8x.*", "--rounds", "2"]) == 0
    assert asked[-1] == (Subject("swiglu", "T8xI13824", "bfloat16"), 2)
    assert cli.main(["bench", "swiglu", "--dtype", "bfloat16"]) == 0
    assert asked[-1][1] == 7 and "quick" not in capsys.readouterr().out.split("T8xI13824")[-1]


def test_the_chart_has_a_row_an_op_with_its_ceiling():
    measured = [made_up(each, {} if cold else PEERS, cold) for each in subjects() for cold in (False, True)]
    rows = chart.rows(measured)
    assert [each.subject for each in rows] == leading(subjects())
    of_ceiling = {"kernel": 2.0, "public op": 2.5, "PyTorch": 3.0, "Paddle's own ops": 5.0}
    assert all(each.times == dict.fromkeys(each.subject.directions, of_ceiling) for each in rows)
    picture = chart.picture(rows, "a processor; $ 2 threads")
    assert picture.get_suptitle() == "a processor; $ 2 threads"
    (legend,) = picture.legends
    assert [text.get_text() for text in legend.texts] == ["ceiling", *of_ceiling]
    for axes, way in zip(picture.axes, (FORWARD, TRAINING), strict=True):
        assert axes.get_title() == way and list(axes.lines[0].get_xdata()) == [1, 1]
        rows_drawn = [at for at, each in enumerate(rows) if way in each.times]
        for name, marks in zip(of_ceiling, axes.collections, strict=True):
            assert marks.get_offsets().tolist() == [[of_ceiling[name], at] for at in rows_drawn]
    names = [label.get_text().split()[0] for label in picture.axes[0].get_yticklabels()]
    assert names == [each.subject.op_name for each in rows]


def test_a_record_without_peers_is_drawn_again(tmp_path, monkeypatch):
    measured = made_up(SMALL, peers={})
    del measured.stats[contestants.OP_AS_IT_COMES, FORWARD], measured.stats[contestants.OP_AS_IT_COMES, TRAINING]
    record.write(tmp_path / "results.json", [measured], record.machine(), "a processor")
    title, results = record.read(tmp_path / "results.json")
    assert title == "a processor" and chart.rows(results) == chart.rows([measured])
    assert (results[0].costs, results[0].cold) == (measured.costs, False)
    (row,) = chart.rows(results)
    assert row.times[FORWARD] == {"kernel": 2.0, "public op": 2.5} and row.is_memory_kept
    (legend,) = chart.picture([row], title).legends
    assert [text.get_text() for text in legend.texts] == ["ceiling", "kernel", "public op"]
    monkeypatch.setattr("sys.argv", ["chart", str(tmp_path / "results.json"), str(tmp_path / "made" / "chart.png")])
    chart.main()
    assert (tmp_path / "made" / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_would_take_long_is_left_out(monkeypatch):
    torch_peers = pytest.importorskip("fusionkit_bench.torch_peers")
    made, forward, both = SMALL.arguments(), *(each.flops for each in costs(SMALL).values())
    for rate, directions in ((both / 9, [FORWARD, TRAINING]), (both / 11, [FORWARD]), (forward / 11, [])):
        monkeypatch.setattr(torch_peers, "product_rate", lambda dtype, rate=rate: rate)
        assert [way for _, way in torch_peers.contestants(SMALL, made, "")] == directions


def test_a_screen_that_fails_costs_no_measurement(tmp_path, monkeypatch):
    """Files are written before anything is printed. The threads of the workers' processes are not this one's."""
    environment = dict(os.environ)
    files = {name: tmp_path / "made" / f"{name}.out" for name in ("table", "json")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    options = ["--case", "T8xH5120", "--dtype", "bfloat16", "--rounds", "1", "--threads", "2", "--no-peers"]
    monkeypatch.setattr("builtins.print", closed)
    with contextlib.suppress(BrokenPipeError):
        cli.main(["bench", "fusion_rms_norm", *options, *written])
    assert json.loads(files["json"].read_text())["benchmarks"]
    assert "fusion_rms_norm" in files["table"].read_text()
    assert dict(os.environ) == environment


def closed(*arguments, **options):
    raise BrokenPipeError


@pytest.mark.parametrize("name", ["kernel", "op", "paddle (tuned)"])
def test_what_is_timed_computes_the_op_and_its_gradients(name):
    made = SMALL.arguments()
    calls = contestants.tuned("cpu", SMALL, made)
    fusionkit.ledger().reset()
    y, gradients = calls[name, FORWARD](), calls[name, TRAINING]()
    through_the_op = {("fusion_rms_norm", "cpu", "chosen"): 2} if name == "op" else {}
    assert dict(fusionkit.ledger()) == through_the_op
    ones = np.ones_like(made["x"], np.float64)
    want_gradients = fusionkit.fusion_rms_norm.reference_vjp(**made, grad_outputs=ones)
    assert close(y, fusionkit.fusion_rms_norm.reference(**made))
    got_gradients = gradients.values() if isinstance(gradients, dict) else gradients
    for got, want in zip(got_gradients, want_gradients.values(), strict=True):
        assert close(got, want)


def close(got, want):
    """Within two roundings of the larger of value and root mean square; the kernels' own tests are stricter."""
    got = np.asarray(got.astype("float32").numpy() if hasattr(got, "numpy") else got, np.float64)
    scale = np.maximum(np.abs(want), np.sqrt(np.mean(want**2)))
    return got.shape == want.shape and np.all(np.abs(got - want) <= 2 * 2**-8 * scale)


def test_a_peer_computes_the_same():
    torch_peers = pytest.importorskip("fusionkit_bench.torch_peers")
    for subject in subjects():
        if not re.match(r"T8x|Sq16|B1xS4096xH40:8", subject.case_name) or subject.dtype != "bfloat16":
            continue
        made = subject.arguments()
        ours = contestants.public(subject, contestants.packed(subject, made, "cpu"), "cpu", FORWARD)()
        for (name, direction), call in torch_peers.contestants(subject, made, "").items():
            theirs = call()
            if direction == FORWARD:
                first, second = (each[0] if isinstance(each, tuple) else each for each in (ours, theirs))
                got, want = second.float().flatten(), first.astype("float32").flatten().numpy()
                if "[B,H,S,D]" in name:
                    got = second.transpose(1, 2).float().flatten()
                assert abs(got.numpy() - want).max() <= 0.05 * abs(want).max(), (subject, name)


def test_the_floor_is_the_slower_ceiling_by_its_better_way():
    measured = result(stream=2.0, stream__non_temporal=1.0, product=1.5, kernel=3.0, op=4.0)
    assert measured.bound_by(FORWARD) == "product" and measured.share_of_ceiling(FORWARD) == 0.5
    assert measured.share_of_kernel(FORWARD) == 0.75


def test_ratios_are_taken_within_a_round():
    """The machine was ten times slower in the second of three rounds, and the kernel twice as slow as the ceiling."""
    subject = Subject("fusion_rms_norm", "T8xH5120", "bfloat16")
    stats = {("stream", FORWARD): seconds(1.0, 10.0, 2.0), ("kernel", FORWARD): seconds(2.0, 20.0, 4.5)}
    measured = Result(subject, costs(subject), False, stats)
    assert measured.share_of_ceiling(FORWARD) == 0.5


def test_targets_are_held_against_ceiling_kernel_peers_and_other_calls():
    as_it_comes = {contestants.OP_AS_IT_COMES: 4.0}  # what a peer in a process as it comes is held against
    first = result(stream=1.0, kernel=2.0, op=2.5, paddle=5.0, **as_it_comes)
    results = [first, result("T64xH5120", stream=1.0, kernel=4.0, op=4.0)]
    against = ("ceiling", "kernel", "paddle", "torch", "case T64xH5120")
    promised = [Target(".*", "T8x.*", FORWARD, name, 0.6) for name in against]
    judged = list(target.judge(promised, results))
    bytes_of_8_rows, bytes_of_64 = 8 + 1 + 8, 64 + 1 + 64  # in rows: x, the weight, y
    rates = (bytes_of_8_rows / 2.0) / (bytes_of_64 / 4.0)
    assert [each.ratio for each in judged] == [0.5, 0.8, 1.25, None, pytest.approx(rates)]
    assert [each.reached for each in judged] == [False, True, True, False, False]


def test_a_worker_that_dies_costs_one_call(monkeypatch, capsys):
    measure = rounds.measure

    def dies_at_first(workers, subject, number):
        if subject.dtype == "bfloat16":
            os.kill(workers[0]._process.pid, signal.SIGKILL)
        return measure(workers, subject, number)

    monkeypatch.setattr(rounds, "measure", dies_at_first)
    assert cli.main(["bench", "fusion_rms_norm", "--case", "T8xH5120", "--no-peers", "--rounds", "1"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"the alone worker ended with -9 on .*T8xH5120.*; this call is left out", printed.err)
    assert re.search(r"T8xH5120 *\| float32", printed.out) and not re.search(r"T8xH5120 *\| bfloat16", printed.out)


def test_a_composition_that_fills_the_memory_is_left_out():
    large = next(each for each in subjects(["flash_attention"]) if each.case_name == "S4096-causal")
    assert contestants.compositions("paddle", large, {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fusion_rmsnorm"], "OP must be one of all_gather_matmul"),
        (["swiglu", "--case", "nothing"], "no call of swiglu has a name like --case 'nothing'"),
        (["swiglu", "--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["swiglu", "--backend", "eager"], "eager declares no benchmark"),
    ],
)
def test_mistakes_are_named(options, message, capsys):
    assert cli.main(["bench", *options]) == 2
    assert message in capsys.readouterr().err
