"""Sub-commands from outside of the core: found, listed, run; broken and doubled ones are named and break nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

ABACUS = """
HELP = "add numbers, 100% by hand"

def add_arguments(parser):
    parser.add_argument("numbers", nargs="+", type=int)
    parser.add_argument("--negative", action="store_true")

def run(options):
    print(sum(options.numbers) * (-1 if options.negative else 1))
    return 3
"""
# Frameworks, what draws charts, and what the sub-commands run.
HEAVY = ("paddle", "torch", "matplotlib", "fusionkit_bench.worker", "fusionkit_planner.report")
INSTALLED = ["ops", "explain", "doctor", "parity", "bench", "bench collectives", "bench mc2", "emulate", "plan"]


def install(site, distribution, source, name="abacus", target=None):
    """A distribution as pip leaves it: one module and the entry point that names it."""
    module = distribution.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fusionkit.commands]\n{name} = {target or module}\n")


def fusionkit(site, *arguments, code="import sys; from fusionkit.cli import main; sys.exit(main())"):
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "1000"}  # a line of help is not broken
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_command_of_another_distribution_is_listed_and_runs(tmp_path):
    install(tmp_path, "abacus-package", ABACUS)
    assert "add numbers, 100% by hand" in fusionkit(tmp_path, "--help").stdout
    assert "add numbers, 100% by hand" in fusionkit(tmp_path, "abacus", "--help").stdout
    ran = fusionkit(tmp_path, "abacus", "2", "3", "--negative")
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "-5\n", "")


def test_an_option_of_a_command_may_have_any_name(tmp_path):
    install(tmp_path, "abacus-package", ABACUS.replace("negative", "run"))
    assert fusionkit(tmp_path, "abacus", "2", "--run").stdout == "-2\n"


def test_an_entry_point_names_a_module(tmp_path):
    install(tmp_path, "abacus-package", ABACUS, target="abacus_package:run")
    said = "abacus-package 1.0: PluginError: the entry point must name a module, got abacus_package:run"
    assert said in fusionkit(tmp_path, "abacus", "2").stderr


def test_a_command_of_two_words_stands_beside_the_one_of_its_first(tmp_path):
    install(tmp_path, "abacus-package", ABACUS)
    install(tmp_path, "beads-package", ABACUS.replace("add numbers", "count beads"), name="abacus.beads")
    install(tmp_path, "wires-package", ABACUS, name="abacus.beads.wires")
    assert fusionkit(tmp_path, "abacus", "beads", "4").stdout == "4\n"
    assert fusionkit(tmp_path, "abacus", "beads", "wires", "5").stdout == "5\n"
    shown = fusionkit(tmp_path, "abacus", "--help").stdout
    assert "See also `fusionkit abacus beads`: count beads, 100% by hand." in shown


@pytest.mark.parametrize(
    "change, reason",
    [
        (("HELP", "raise RuntimeError('no beads')\nHELP"), "RuntimeError: no beads"),
        (("def run", "def walk"), "PluginError: abacus_package must define HELP, add_arguments, run; run is missing"),
        (("type=int", "type=abc"), "NameError: name 'abc' is not defined"),
        (("HELP", "raise SystemExit('no licence')\nHELP"), "SystemExit: no licence"),
    ],
    ids=["import", "part", "arguments", "exit"],
)
def test_a_broken_command_is_shown_with_its_reason_and_breaks_nothing(tmp_path, change, reason):
    install(tmp_path, "abacus-package", ABACUS.replace(*change))
    shown = fusionkit(tmp_path, "--help")
    assert shown.returncode == 0 and f"not available: abacus-package 1.0: {reason}" in shown.stdout
    refused = fusionkit(tmp_path, "abacus", "--negative", "2")
    assert refused.returncode == 2
    assert refused.stderr == f"fusionkit: abacus is not available: abacus-package 1.0: {reason}\n"
    assert "swiglu" in fusionkit(tmp_path, "ops").stdout


def test_two_distributions_that_offer_one_command_are_an_error_that_names_both(tmp_path):
    install(tmp_path, "abacus-package", ABACUS)
    install(tmp_path, "other-package", ABACUS)
    refused = fusionkit(tmp_path, "abacus", "2")
    assert refused.returncode == 2 and "two distributions offer the command 'abacus': " in refused.stderr
    assert "abacus-package 1.0" in refused.stderr and "other-package 1.0" in refused.stderr
    assert refused.stderr.endswith(". Uninstall one of them\n")
    assert "swiglu" in fusionkit(tmp_path, "ops").stdout


def test_nobody_replaces_a_command_of_the_core(tmp_path):
    install(tmp_path, "abacus-package", ABACUS, name="ops")
    ran = fusionkit(tmp_path, "ops")
    assert ran.returncode == 0 and "swiglu" in ran.stdout
    said = "fusionkit: ops is fusionkit's own command, and stays so; abacus-package 1.0 offers one, too. Uninstall it, "
    assert ran.stderr == said + "or ask its authors for another name\n"
    listed = fusionkit(tmp_path, "--help")
    assert "add numbers" not in listed.stdout and listed.stderr == ran.stderr
    assert fusionkit(tmp_path, "explain", "swiglu", "gate=4x8", "up=4x8").stderr == ""


def test_help_lists_what_is_installed_and_imports_nothing_heavy(tmp_path):
    code = f"""
import atexit, sys
from fusionkit.cli import main
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
main(["--help"])
"""
    *shown, imported = fusionkit(tmp_path, code=code).stdout.splitlines()
    listed = [line.strip().partition("  ")[0] for line in shown if re.match(r" {4}\S", line)]
    assert listed == INSTALLED
    assert imported == "[]"


def test_a_command_of_the_core_imports_no_other(tmp_path):
    code = """
import sys
from fusionkit.cli import main
main(["explain", "swiglu", "gate=4x8", "up=4x8"])
print([name for name in sys.modules if name.startswith(("fusionkit_bench", "fusionkit_planner", "fusionkit.cli."))])
"""
    ran = fusionkit(tmp_path, code=code)
    assert ran.stdout.splitlines()[-1] == "['fusionkit.cli.commands', 'fusionkit.cli.explain']", ran.stderr
