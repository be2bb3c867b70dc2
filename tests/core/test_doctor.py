"""What `fusionkit doctor` vouches for was tried, and what is wrong has a cause and a cure."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fusionkit_backends.cpu import health, runtime

import fusionkit as fk
from fusionkit import attempt, cli, foreign
from fusionkit.attempt import tried

ROOT = Path(fk.__file__).parents[1]


def doctor(*options, **variables):
    command = [sys.executable, "-m", "fusionkit", "doctor", *options]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, cwd=ROOT)


def doctor_that_tries_nothing(**variables):
    """What it finds without the calls in processes of their own."""
    code = "import sys, fusionkit.attempt\nfusionkit.attempt.attempt = lambda code: (True, 'not tried')\n"
    command = [sys.executable, "-c", f"{code}from fusionkit.cli import main\nsys.exit(main(['doctor']))"]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables, cwd=ROOT)


@pytest.fixture
def site(tmp_path):
    """A folder on the path with another project's distribution of our name."""
    info = tmp_path / "site/fusionkit-0.10.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fusionkit\nVersion: 0.10.1\n")
    (info / "RECORD").write_text("fusionkit_cli/__init__.py,,\nfusionkit-0.10.1.dist-info/METADATA,,\n")
    return tmp_path / "site"


def test_everything_that_is_well_was_tried():
    said = doctor("--json")
    sections = {
        section["title"].partition(" ")[0]: section["checks"] for section in json.loads(said.stdout)["sections"]
    }
    found = {(title, check["name"]): check["found"] for title, checks in sections.items() for check in checks}
    assert said.returncode == 0 and json.loads(said.stdout)["well"] is True
    titles = [section["title"] for section in json.loads(said.stdout)["sections"]]
    assert "npu (paddle-fusionkit 0.1.0): proof: emulated" in titles and "cpu (paddle-fusionkit 0.1.0)" in titles
    assert found["fusionkit", "communicator"] == "two ranks added their arrays"
    with_avx512 = runtime.native().available_isas()[0] not in ("avx2", "portable")
    assert f"products by {'onednn' if with_avx512 else 'blocked'}" in found["cpu", "native library"]
    assert found["cpu", "Paddle"].endswith("its tensors reach the kernels")
    assert found["eager", "Paddle"].endswith("computes")


@pytest.mark.parametrize("in_the_way", [".cache", ".cache/paddle", ".cache/paddle/dataset/.."])
def test_a_home_in_which_paddle_cannot_be_imported_is_named_with_its_cure(tmp_path, in_the_way):
    file = Path(os.path.normpath(tmp_path / in_the_way))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    said = doctor(HOME=str(tmp_path))
    assert said.returncode == 1 and "problems: 2" in said.stdout and "Everything is well" not in said.stdout
    folder = f"Paddle cannot be imported, because the folder {tmp_path}/.cache/paddle/dataset cannot be made: "
    assert said.stdout.count(f"FAILED  Paddle: {folder}") == 2
    assert (
        "mend it with: move away what is in its place, or name a home that can be written: export HOME=" in said.stdout
    )
    call = (
        "import numpy as np, fusionkit as fk; x = np.ones((2, 8), 'f')\nwith fk.use_backend('eager'): fk.swiglu(x, x)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", call], env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert ended.stderr.splitlines()[-1].startswith(f"fusionkit.errors.FusionkitError: {folder}")


def test_what_is_installed_is_tried_also_in_a_source_folder_that_is_not_built(tmp_path):
    """Python takes a package of the folder where it runs first: there is no communicator in this one."""
    unbuilt = shutil.ignore_patterns("lib", "csrc", "__pycache__")
    shutil.copytree(ROOT / "fusionkit", tmp_path / "fusionkit", ignore=unbuilt)

    def said(*options):
        command = [sys.executable, *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    code = "from fusionkit.attempt import tried; from fusionkit.cli.doctor import TWO_RANKS; "
    code += "print(tried('communicator', TWO_RANKS, 'build'))"
    installed = said("-P", "-c", code)  # as the installed command runs
    assert "passed=True" in installed and "two ranks added their arrays" in installed
    assert "passed=False" in said("-c", code)


def test_a_native_library_that_cannot_be_loaded_is_not_vouched_for(tmp_path):
    """A copy of the package whose library is cut off."""
    for name in ("fusionkit", "backends/cpu"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("csrc", "__pycache__"))
    (tmp_path / "fusionkit_backends").symlink_to("backends")
    library = tmp_path / "backends/cpu/lib/libfusionkit_cpu.so"
    library.write_bytes(library.read_bytes()[:4096])
    code = "import fusionkit.attempt as a, fusionkit_backends.cpu.health as h; print(h.LIBRARY_DIR, h.doctor()[0])"
    command = [sys.executable, "-c", code]
    said = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert said.stdout.startswith(str(tmp_path)) and "passed=False" in said.stdout, said.stderr
    assert "died of signal" in said.stdout or "libfusionkit_cpu.so" in said.stdout
    assert "--no-build-isolation" in said.stdout


@pytest.mark.parametrize(
    "code, found",
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11"),
        ("print(1); raise ValueError('no beads')", "ValueError: no beads"),
        ("raise SystemExit(3)", "ended with status 3"),
    ],
)
def test_what_fails_is_told_in_one_line(code, found):
    check = tried("beads", code, "buy beads")
    assert (check.passed, check.found, check.fix) == (False, found, "buy beads")
    assert tried("beads", "print('all'); print('there')", "").found == "there"


def test_a_late_answer_is_no_reason_to_build_again(monkeypatch):
    monkeypatch.setattr(attempt, "TIMEOUT", 0.1)
    check = tried("beads", "import time; time.sleep(60)", "buy beads")
    assert (check.passed, check.found) == (False, "did not end within 0.1 s") and "machine does less" in check.fix


def test_the_guide_shows_what_doctor_prints():
    """But for what differs from machine to machine: instruction set, products, threads and what sets their number."""

    def alike(text):
        text = re.sub(r"runs with \w+ on \d+ threads?, products by \w+.*", "runs", text)
        return re.sub(r"threads: \d+ \(.*\)", "threads", text)

    page = (ROOT / "docs/install/cpu.md").read_text()
    (shown,) = re.findall(r"<!-- doctor: cpu.*-->\n```\n(.*?)```", page, re.DOTALL)
    assert alike(shown).count("runs\n") == 1 and alike(shown) in alike(doctor().stdout)


def test_a_wrong_setting_is_no_reason_to_build_again(monkeypatch):
    monkeypatch.setenv("FUSIONKIT_STRIKT", "1")
    native, *_ = health.doctor()
    assert not native.passed and "did you mean 'FUSIONKIT_STRICT'?" in native.found
    assert native.fix == "correct that setting"


def test_another_projects_distribution_of_our_name_is_named(site, monkeypatch, capsys):
    monkeypatch.syspath_prepend(site)
    assert list(foreign.distributions()) == [("fusionkit 0.10.1", False)]
    cli.main(["doctor"])
    line = "ok      fusionkit 0.10.1: another project's; this one is installed as paddle-fusionkit."
    assert f"{line} If it was not meant: pip uninstall fusionkit" in capsys.readouterr().out


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "beside"])
def test_another_projects_package_in_our_place_is_a_problem_with_a_cure(site, mixed):
    """Its files are among ours, or its package is found before ours."""
    if mixed:
        record = site / "fusionkit-0.10.1.dist-info/RECORD"
        record.write_text(record.read_text() + "fusionkit/theirs.py,,\n")
    else:
        (site / "fusionkit").mkdir()
        (site / "fusionkit/__init__.py").touch()
    said = doctor_that_tries_nothing(PYTHONPATH=str(site))
    assert said.returncode == 1 and "communicator: not tried" in said.stdout
    assert "FAILED  fusionkit 0.10.1: another project's; this one is installed as paddle-fusionkit" in said.stdout
    assert "mend it with: pip uninstall fusionkit, then: pip install --force-reinstall" in said.stdout


def test_the_command_runs_when_another_projects_package_hides_ours(site):
    (site / "fusionkit").mkdir()
    (site / "fusionkit/__init__.py").touch()
    path = "import sys; sys.path[1:1] = sys.argv.pop(), sys.argv.pop()"
    code = f"{path}; from fusionkit_command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "doctor", str(ROOT), str(site)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=site.parent)
    assert said.returncode == 2 and "Traceback" not in said.stderr
    assert f"this is not the package of paddle-fusionkit in {ROOT}/fusionkit" in said.stderr
    assert "fusionkit 0.10.1 is another project's. Run: pip uninstall fusionkit, then: " in said.stderr
