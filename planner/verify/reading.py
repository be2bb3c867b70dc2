"""What a run left: seconds of its steps, peak memory of its ranks, or why it failed."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 400  # of a reason
# How ranks tell that another one has failed; that one's own words say more.
HEARSAY = re.compile(r"must answer within|has ended|has left|another rank failed|must stay in the group")
ERROR = re.compile(r"error: (.+)|(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt)\b.*)")
KILLED = re.compile(r"rank (\d+) status failed .* code -(\d+)")  # paddle.distributed.launch, of Paddle 3.3.1
KILL = 9


def step_seconds(output: Path) -> list[float]:
    """Of each step in `log.jsonl`; none before the first has ended."""
    file = output / "log.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found.append(float(json.loads(line)["seconds"]))
    return found


def peaks(output: Path) -> list[float]:
    """Bytes of each rank, from the run's `report.json`; none where it has none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return [float(peak) for peak in json.loads((output / "report.json").read_text())["memory"]["measured"]]
    return []


def rehearsed(report: Path) -> list[dict[str, Any]]:
    """What each rank of a rehearsal found, in the order of ranks; none where there is no report."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found: list[dict[str, Any]] = json.loads(report.read_text())["ranks"]
        return found
    return []


def reason(folder: Path, ranks: list[dict[str, Any]]) -> str:
    """Why the run in this folder failed: what a rank itself says, before what it says of others.

    Args:
        ranks: of a rehearsal; empty for another run.
    """
    logs = sorted(folder.rglob("workerlog.*"))
    words = [said for log in logs if (said := last_error(log.read_text(errors="replace")))]
    first_hand = [each for each in words if not HEARSAY.search(each)]
    launcher = folder / "launch.log"
    printed = launcher.read_text(errors="replace") if launcher.exists() else ""
    found = [*_out_of_memory(ranks), *first_hand, *_killed(printed), *words, *printed.strip().splitlines()[-1:]]
    return found[0][:MOST_CHARACTERS] if found else "it said nothing"


def last_error(text: str) -> str:
    """What a process said last of an error: the line of a command, or the end of a trace."""
    lines = text.splitlines()
    for place in range(len(lines) - 1, -1, -1):
        if match := ERROR.match(lines[place]):
            said = match[1] or match[2]
            # Paddle's own errors have a name, and their words in the next line.
            return said if not said.endswith(": ") else " ".join([said.strip(), *_next(lines[place + 1 :])])
    return ""


def _next(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()][:1]


def _killed(printed: str) -> Iterator[str]:
    for rank, number in KILLED.findall(printed):
        why = ": the host may have run out of memory" if int(number) == KILL else ""
        yield f"rank {rank} was killed by signal {number}{why}"


def _out_of_memory(ranks: list[dict[str, Any]]) -> Iterator[str]:
    for rank in ranks:
        failure = rank["failure"]
        if failure.get("kind") == "memory":
            yield (
                f"rank {rank['process']['rank']} is out of memory: {failure['asked'] / 1e9:.3g} GB more were asked for "
                f"by {failure['line'] or 'no Python code'}, {failure['reserved'] / 1e9:.3g} of "
                f"{failure['limit'] / 1e9:.3g} GB are taken"
            )
