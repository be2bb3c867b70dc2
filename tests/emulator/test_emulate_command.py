"""`fusionkit emulate`: what the command gets, what is refused, and what it counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from fusionkit_emulator import SETTINGS, environment, fallbacks

from fusionkit.backend import CORE_SETTINGS
from fusionkit.cli import main
from tests.hanging import HANGING

LINE = (
    b"I1124 08:35:53.611141 27735 kernel_factory.cc:389] missing npu kernel: %s, "
    b"expected_kernel_key:(npu, Undefined(AnyLayout), float32), fallbacking to CPU one!\n"
)
SHOW = "import json, os; print(json.dumps(dict(os.environ)))"
PARTS = (b"50%|", LINE % b"cumsum", b"I am not a log\n", (LINE % b"unique")[:40], (LINE % b"unique")[40:])
# Stands for Paddle: its real lines, one of them split, around output of the command's own.
SPEAK = f"""import os, time
for part in {PARTS!r}:
    os.write(2, part); time.sleep(0.05)
open('worker.log', 'ab').write({LINE % b"unique"!r})
raise SystemExit(7)"""


def emulate(*arguments, **variables):
    script = "import sys; from fusionkit.cli import main; sys.exit(main())"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
    command = [sys.executable, "-c", script, "emulate", *map(str, arguments)]
    return command, clean | variables


def run(*arguments, cwd=None, **variables):
    command, variables = emulate(*arguments, **variables)
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=cwd, timeout=HANGING)


def test_command_gets_the_emulators_variables_and_keeps_the_others():
    options = ["--devices", 8, "--memory", "1.5GiB", "--sync", "--timeout", 20]
    ran = run("npu", *options, "--", sys.executable, "-c", SHOW, LD_LIBRARY_PATH="/elsewhere", KEPT="yes")
    assert ran.stderr == "fusionkit: emulated npu, 8 devices of 1.5 GiB: a software stand-in, no hardware\n"
    seen = json.loads(ran.stdout)
    folder = str(environment.LIBRARY.parent)
    assert {name: value for name, value in seen.items() if name.startswith("FUSIONKIT_")} == {
        "FUSIONKIT_EMULATOR_DEVICE": "npu",
        "FUSIONKIT_EMULATOR_DEVICES": "8",
        "FUSIONKIT_EMULATOR_MEMORY": str(3 * 2**29),
        "FUSIONKIT_EMULATOR_TIMEOUT": "20",
        "FUSIONKIT_EMULATOR_SYNC": "1",
        "FUSIONKIT_EMULATOR_UNCHECKED": "0",
    }
    assert seen["CUSTOM_DEVICE_ROOT"] == folder
    assert seen["LD_LIBRARY_PATH"] == f"{folder}:/elsewhere"
    assert seen["KEPT"] == "yes" and "GLOG_vmodule" not in seen


def test_exit_status_and_signals_are_the_commands_own():
    assert run("gcu", "--", "sh", "-c", "exit 7").returncode == 7
    command, variables = emulate("gcu", "--", "sleep", "60")
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE) as process:
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_options_of_the_command_are_not_taken():
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:])", "--devices", "2", "--", "x"]
    for given in (["npu", "--", *command], ["npu", "--sync", "--", *command], ["npu", "--sync", *command]):
        assert run(*given).stdout == "['--devices', '2', '--', 'x']\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nupu", "true"], "no device type is called 'nupu'; did you mean 'npu'?"),
        (["npu", "--memory", "64GB", "true"], "--memory must be a number with KiB, MiB, GiB, TiB, got '64GB'"),
        (["npu", "--memory", "0GiB", "true"], "--memory must be a number with"),
        (["npu", "--devices", "0", "true"], "--devices must be at least 1, got 0"),
        (["npu", "--timeout", "0", "true"], "--timeout must be at least 1, got 0"),
        (["npu", "no-such-program"], "COMMAND must be a program, got 'no-such-program'"),
    ],
)
def test_wrong_options_are_explained(arguments, message, capfd):
    assert main(["emulate", *arguments]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--devices", 2], ["--"], ["--devices", 2, "--"]])
def test_missing_command_is_an_error(arguments):
    ran = run("npu", *arguments)
    assert ran.returncode == 2 and "COMMAND" in ran.stderr and "Traceback" not in ran.stderr


def test_library_that_is_missing_or_for_another_paddle_is_refused(tmp_path, monkeypatch):
    stamp = tmp_path / "build_info.json"
    stamp.write_text('{"paddle_version": "2.6.2"}')
    monkeypatch.setattr(environment, "BUILD_INFO", stamp)
    with pytest.raises(ValueError, match=r"built for Paddle 2\.6\.2, and .* has Paddle 3"):
        environment.require_built([sys.executable])
    environment.require_built(["sh"])
    monkeypatch.setattr(environment, "LIBRARY", tmp_path / "none.so")
    with pytest.raises(ValueError, match="the emulator is not built"):
        environment.require_built(["sh"])


def test_fallbacks_are_counted_and_everything_else_passes(tmp_path):
    (tmp_path / "worker.log").write_bytes(LINE % b"old")
    ran = run("npu", "--fallbacks", "*.log", "--", sys.executable, "-c", SPEAK, cwd=tmp_path)
    assert ran.returncode == 7
    assert ran.stderr.splitlines()[1:] == [
        "50%|I am not a log",
        "fusionkit: 3 calls fell back to CPU kernels",
        "   calls  op  dtype",
        "       2  unique  float32",
        "       1  cumsum  float32",
    ]


def test_paddles_own_log_is_understood_though_it_was_hidden():
    """An op without a device kernel on the emulated device: its shape depends on data, so it stays on the CPU."""
    code = "import paddle; paddle.set_device('npu'); print(paddle.nonzero(paddle.to_tensor([0.0, 2.0])).numpy())"
    ran = run("npu", "--fallbacks", "--", sys.executable, "-c", code, GLOG_minloglevel="3")
    assert ran.returncode == 0 and ran.stdout == "[[1]]\n", ran.stderr
    assert "  nonzero  float32" in ran.stderr and "kernel_factory" not in ran.stderr


def test_a_stopped_command_with_fallbacks_ends_and_is_counted():
    code = f"import os, time; os.write(2, {LINE % b'unique'!r}); os.write(2, b'on\\n'); time.sleep(60)"
    command, variables = emulate("npu", "--fallbacks", "--", sys.executable, "-c", code)
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE) as process:
        assert [process.stderr.readline() for _ in range(2)][1] == b"on\n"
        started = time.monotonic()
        process.terminate()
        assert b"unique" in process.stderr.read()
        assert process.wait() == 128 + signal.SIGTERM and time.monotonic() - started < 10


def test_reading_a_log_changes_nothing_else():
    counts = Counter()
    assert fallbacks.take(b"a\n" + LINE % b"x" + b"b", counts) == b"a\nb"
    assert counts == {("x", "float32"): 1}


ASK = "import fusionkit as fk, numpy as np; a = np.ones((2, 8), 'f'); {}"


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"FUSIONKIT_EMULATOR_DEVICE": "npu", "FUSIONKIT_EMULATOR_DEVICES": "8"}, "chosen"),
        ({"FUSIONKIT_EMULATOR_DEVISES": "8"}, "did you mean 'FUSIONKIT_EMULATOR_DEVICES'?"),
        ({"FUSIONKIT_EMULATOR_SYNC": "yes"}, "FUSIONKIT_EMULATOR_SYNC must be 0 or 1, got 'yes'"),
    ],
)
def test_the_core_knows_the_emulators_settings(variables, message):
    code = ASK.format("print(fk.fusion_rms_norm.explain(a, a[0]))")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
    ran = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True)
    assert message in ran.stdout + ran.stderr


def test_a_file_cannot_set_what_the_library_reads_from_the_environment(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[emulator]\ndevices = 8\n")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
    code = ASK.format("fk.fusion_rms_norm(a, a[0])")
    ran = subprocess.run(
        [sys.executable, "-c", code], env=clean | {"FUSIONKIT_CONFIG": str(file)}, capture_output=True, text=True
    )
    assert "FUSIONKIT_EMULATOR_DEVICES must be set in the environment" in ran.stderr


def test_an_emulated_device_is_called_emulated():
    code = ASK.format("print(fk.fusion_rms_norm.explain(a, a[0], device='npu:0'))")
    ran = run("npu", "--", sys.executable, "-c", code)
    assert "device npu:0 (emulated)" in ran.stdout
    assert "tensors are on npu:0 (emulated)" in ran.stdout


def test_every_variable_that_is_set_is_a_known_setting():
    made = environment.variables("npu", 1, 2**30, 1, False, False, {})
    assert {name for name in made if name.startswith("FUSIONKIT_")} <= SETTINGS.keys() | CORE_SETTINGS.keys()
