"""`fusionkit bench collectives` runs, and shows what it measured beside a peer and a ceiling."""

from __future__ import annotations

import re

from fusionkit.cli import main


def test_the_communicator_is_measured_beside_gloo(capsys):
    assert main(["bench", "collectives", "all_gather", "--rounds", "1", "--largest", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 ranks on" in shown
    assert re.search(r"fusionkit, tcp us \| gloo, tcp us", shown)
    for row in re.findall(r"\| all_gather +\| 1 MiB +\|(.*)\|", shown):
        median, *_, rate, ceiling = [cell.strip() for cell in row.split("|")]
        assert float(median) > 0
        assert float(rate) > 0
        assert float(ceiling) > 0
    assert len(re.findall(r"\| all_gather", shown)) == 6  # three sizes, two ways


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["bench", "collectives", "scan"]) == 2
    assert "CALL must be one of all_reduce" in capsys.readouterr().err
    assert main(["bench", "collectives", "--ranks", "1"]) == 2
