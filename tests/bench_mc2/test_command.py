"""The command from end to end: smoke runs, whose figures are not judged, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fusionkit_bench.mc2 import network

from fusionkit import cli

MISSING = network.missing()
needs_root = pytest.mark.skipif(bool(MISSING), reason=f"missing: {'; '.join(MISSING)}")
COMMAND = (sys.executable, "-c", "import sys; from fusionkit.cli import main; sys.exit(main())", "bench", "mc2")
SMALL = ("--rows", "64", "--rounds", "2")


def test_names_of_two_words(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    assert "fusionkit bench mc2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["bench", "mc2", "--help"])
    assert "usage: fusionkit bench mc2" in capsys.readouterr().out
    known = cli.commands.offered()
    assert cli.joined(["bench", "mc2", "--grid"], known) == ("bench mc2", ["bench mc2", "--grid"])
    assert cli.joined(["bench", "swiglu"], known) == ("bench", ["bench", "swiglu"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["swiglu"], "OP must be one of all_gather_matmul"),
        (["--ranks", "1"], "--ranks must be at least 2, got 1"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--c", "0"], "--c must be more than 0"),
        (["--link", "fast"], "--link must be rates such as 200mbit"),
        (["--backend", "npux"], "no backend is called 'npux'"),
    ],
)
def test_mistakes_are_named(options, message, capsys):
    assert cli.main(["bench", "mc2", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_backend_without_overlap_is_named(capsys):
    assert cli.main(["bench", "mc2", "--backend", "eager", "--no-link"]) == 2
    assert "eager declares no benchmark" in capsys.readouterr().err


def test_unshaped_it_measures_and_claims_nothing(tmp_path, capsys):
    files = {name: tmp_path / name for name in ("json", "table", "timeline", "chart")}
    written = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    options = ["all_gather_matmul", "--no-link", *SMALL, *written, "--require-claim"]
    assert cli.main(["bench", "mc2", *options]) == 1
    printed = capsys.readouterr().out
    assert len(re.findall(r"^no claim: all_gather_matmul \w+ .*\n  the link is not shaped$", printed, re.M)) == 2
    assert "claim: all" not in printed.replace("no claim: all", "")
    assert files["table"].read_text() == printed
    for name in ("timeline", "chart"):
        assert files[name].read_bytes().startswith(b"\x89PNG")
    forward, backward = json.loads(files["json"].read_text())["measurements"]
    for measured in (forward, backward):
        assert {"H", "E", "B", "c", "split loss", "stolen", "H, overlap off"} <= set(measured["figures"])
        assert [len(rank["seconds"]["Tf"]) for rank in measured["ranks"]] == [2, 2]
        assert {backend for _, backend, *_ in measured["ranks"][0]["ran"]} == {"cpu"}


@needs_root
def test_on_a_shaped_link_the_collective_takes_what_the_link_gives(tmp_path, capsys):
    """64 rows of 2048 bfloat16 are 262 kB: 5.2 ms at 400 Mbit/s, less the burst of 98 kB."""
    options = ["matmul_reduce_scatter", "--direction", "forward", "--link", "400mbit", *SMALL]
    assert cli.main(["bench", "mc2", *options, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "out of each rank for c = 0.6" in printed and "2 rounds, fewer than 15" in printed
    assert "the link is not shaped" not in printed
    (measured,) = json.loads((tmp_path / "out.json").read_text())["measurements"]
    assert measured["link"] == "400mbit" and min(measured["slowest_rank_s"]["Tc"]) > (262e3 - 98e3) / 50e6


def test_without_the_programs_it_says_so_and_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(network.shutil, "which", lambda name: None)
    options = ["matmul_all_reduce", "--ranks", "3", *SMALL]
    monkeypatch.setattr("fusionkit_bench.mc2.cores.physical_cores", lambda: [0, 1])
    assert cli.main(["bench", "mc2", *options]) == 0
    printed = capsys.readouterr().out
    assert "Missing: ip (package iproute2); tc (package iproute2)" in printed and "unshare --user" in printed
    assert "3 ranks share 2 cores" in printed and "  ranks share cores" in printed


def ranks_of(parent):
    """Processes of its ranks, by what they were started with."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fusionkit_bench.mc2.rank" in words and str(parent).encode() in words:
            found.append(int(entry.name))
    return found


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_ctrl_c_prints_what_was_measured_and_ends_the_ranks():
    options = ["matmul_all_reduce", "--no-link", "--rows", "64", "--rounds", "1000000"]
    parent = subprocess.Popen(
        [*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert wait_for(lambda: len(ranks_of(parent.pid)) == 2)
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate(timeout=30)
    assert parent.returncode == 130
    assert "interrupted; what was measured until now follows" in err and "Traceback" not in err
    assert wait_for(lambda: not ranks_of(parent.pid), 5)
