"""The command `fusionkit` as people type it: pipes that close, plain terminals, packages that are not here, JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import fusionkit
from fusionkit import cli

COMMAND = (sys.executable, "-m", "fusionkit")
EXPLAIN = ("explain", "swiglu", "gate=4x8", "up=4x8")
FEW = ("--op", "swiglu", "--route", "numpy")
SHOWN = [("ops",), ("ops", "--json"), EXPLAIN, ("doctor",), ("plan", "mc2", "--device", "910b"), ("--help",)]
SHOWN += [("parity", *FEW), ("bench", "--help"), ("--version",)]


@pytest.fixture
def said(capsys):
    """said(*arguments) -> (status, what was printed)."""

    def said(*arguments):
        status = cli.main(arguments)
        return status, capsys.readouterr().out

    return said


def without(*packages):
    """The command in a process where these cannot be imported."""
    hidden = "".join(f"sys.modules[{name!r}] = None; " for name in packages)
    return (sys.executable, "-c", f"import sys; {hidden}from fusionkit.cli import main; sys.exit(main(sys.argv[1:]))")


def run(*command, **variables):
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables)


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_a_reader_that_leaves_ends_the_command_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    printed_by_argparse = arguments[-1].startswith("--") and arguments[-1] != "--json"
    assert ended.returncode == (0 if printed_by_argparse else cli.NOBODY_READS)
    assert "BrokenPipe" not in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.parametrize("arguments", [("ops",), EXPLAIN, (*EXPLAIN, "--json")], ids=" ".join)
def test_a_closed_output_ends_the_command_quietly(arguments):
    shell = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    assert (shell.returncode, shell.stderr) == (0, "")


def test_a_terminal_that_lacks_a_character_gets_an_escape(tmp_path):
    file = tmp_path / "\u878d\u5408.toml"
    file.write_text('backend = "cpu"')
    for encoding in ("ascii", "latin-1"):
        shown = run(*COMMAND, *EXPLAIN, "--json", PYTHONIOENCODING=encoding, FUSIONKIT_CONFIG=str(file))
        assert shown.returncode == 0, shown.stderr
        doctor = run(*COMMAND, "doctor", PYTHONIOENCODING=encoding, FUSIONKIT_CONFIG=str(file))
        assert "\\u878d\\u5408.toml" in doctor.stdout, doctor.stderr


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"fusionkit {fusionkit.__version__}\n"


def test_ops_as_json(said):
    status, text = said("ops", "--json")
    known = json.loads(text)
    assert status == 0 and list(known["ops"]) == list(fusionkit.OP_NAMES)
    assert {each["name"] for each in known["backends"]} == {status.name for status in fusionkit.backends()}
    attention = known["ops"]["flash_attention"]["gpu"]
    assert attention["frameworks"] == ["paddle"] and list(attention["for_framework"]) == ["torch"]


def test_the_table_has_a_column_for_the_tensors_of_each_framework(said):
    """The loss takes PyTorch's tensors on gpu, and not Paddle's; attention has other limits for each."""
    status, text = said("ops", "--markdown")
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    shown = {
        op: (table[op]["gpu (not run)"], table[op]["gpu, torch (not run)"])
        for op in ("flash_attention", "fused_linear_cross_entropy")
    }
    assert status == 0
    assert shown == {
        "flash_attention": ("bf16 f16, no return_lse", "yes"),
        "fused_linear_cross_entropy": ("-", "yes, no group"),
    }
    assert all(row["cpu"] == row["eager"] == "yes" for row in table.values())


def test_explain_as_json(said):
    status, text = said(*EXPLAIN, "--json")
    explained = json.loads(text)
    assert (status, explained["op"], explained["chosen"]) == (0, "swiglu", "cpu")
    assert {"backend": "gcu", "verdict": "no", "reasons": ["tensors are on cpu"]} in explained["candidates"]
    status, text = said(*EXPLAIN, "--backend", "npu", "--json")
    assert status == 1 and json.loads(text)["chosen"] is None


def test_parity_as_json(said):
    status, text = said("parity", *FEW, "--json")
    outcome = json.loads(text)
    assert status == 0 and outcome["right"] > 0 and outcome["failures"] == [] and outcome["nothing_ran"] is None


@pytest.mark.parametrize(
    "short, full", [("bf16", "bfloat16"), ("fp16", "float16"), ("f16", "float16"), ("f32", "float32")]
)
def test_short_names_of_dtypes(said, short, full):
    assert (
        f"gate [4, 8] {full}, up [4, 8] {full}" in said("explain", "swiglu", f"gate=4x8:{short}", f"up=4x8:{short}")[1]
    )
    assert fusionkit.TensorSpec((2,), short).dtype == full


@pytest.mark.parametrize("device", ["foo", "npx:0", "", "CPU", "cpu:x", "npu:-1", "npu:", "npu:0:1"])
def test_a_device_that_does_not_exist_is_an_error_that_names_the_known_ones(device, capsys):
    assert cli.main([*EXPLAIN, "--device", device]) == 2
    error = capsys.readouterr().err
    assert "swiglu: device must be " in error and repr(device) in error
    assert all(known in error for known in ("cpu", "cuda", "gcu", "gpu", "npu", "xpu")) or ":" in device


def test_devices_that_are_elsewhere_are_known(said):
    for device in ("gpu", "cuda:1", "npu:7", "cpu"):
        assert f"(device {device}, " in said(*EXPLAIN, "--device", device)[1]


def test_a_tensor_on_a_device_that_does_not_exist_is_an_error():
    foreign = fusionkit.TensorSpec((4, 8), "float32", "foo:0")
    with pytest.raises(ValueError, match="device must be cpu, .* got 'foo:0'"):
        fusionkit.swiglu.explain(foreign, foreign)


def test_explain_shows_the_arguments_that_are_no_tensors(said):
    tensors = [f"{name}=1x4x2x64" for name in "qkv"]
    default = said("explain", "flash_attention", *tensors)[1].splitlines()[0]
    assert default.endswith("v [1, 4, 2, 64] float32)")
    other = said("explain", "flash_attention", *tensors, "causal=True", "scale=0.5", "return_lse=False")[1]
    assert other.splitlines()[0].endswith("v [1, 4, 2, 64] float32, causal=True, scale=0.5)")


@pytest.mark.parametrize("backend", ["npu", "gcu", "xpu"])
@pytest.mark.parametrize("missing", [(), ("torch",), ("torch", "triton", "paddle")], ids=str)
def test_parity_of_a_device_that_is_not_here_says_that_nothing_ran(backend, missing):
    ended = run(*without(*missing), "parity", "--backend", backend)
    assert ended.returncode == 1 and ended.stderr == ""
    assert ended.stdout.startswith(f"{backend}: not here, nothing ran: ") and ended.stdout.count("\n") == 1


def test_parity_takes_the_routes_that_are_here():
    ended = run(*without("torch", "paddle"), "parity", "--op", "swiglu")
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    left_out, also, counts = ended.stdout.splitlines()
    assert left_out.startswith(
        "cpu: the route paddle is left out: paddle is not installed. Run: pip install '.[paddle]'"
    )
    assert also.startswith("cpu: the route static is left out: ") and "cases right, 0 refused" in counts


@pytest.mark.parametrize(
    "missing, arguments, extra",
    [
        ("paddle", ("parity", "--route", "static"), "paddle"),
        ("pytest_benchmark", ("bench", "swiglu"), "bench"),
        ("paddle", ("bench", "swiglu"), "paddle"),
        ("matplotlib", ("bench", "swiglu", "--chart", "chart.png"), "bench"),
        ("matplotlib", ("bench", "mc2", "--no-link", "--chart", "chart.png"), "bench"),
        ("paddle", ("bench", "mc2", "--no-link"), "paddle"),
        ("matplotlib", ("plan", "mc2", "--device", "910b", "--chart", "chart.png"), "bench"),
    ],
)
def test_what_is_not_installed_is_one_line_with_the_command_that_installs_it(missing, arguments, extra):
    ended = run(*without(missing), *arguments)
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.endswith(f"{missing} is not installed. Run: pip install '.[{extra}]' (in fusionkit's source folder)")
