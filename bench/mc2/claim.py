"""Why a measurement proves nothing. A claim is printed only where this finds no reason."""

from __future__ import annotations

from collections.abc import Iterator

from fusionkit_bench.mc2.measurement import CONTROL, Measurement

MIN_SHARE_OF_LINK = 0.9  # a poor transport is easily hidden; headers take 4%
MIN_ROUNDS = 15
MAX_SERIAL_EXCESS = 0.03
C_RANGE = (0.3, 0.9)


def reasons(measured: Measurement) -> list[str]:
    """Empty when the protocol's conditions hold."""
    return [*_of_the_machine(measured), *_of_the_figures(measured)]


def _of_the_machine(measured: Measurement) -> Iterator[str]:
    if measured.link is None:
        yield "the link is not shaped"
    if measured.shares_cores:
        yield "ranks share cores"
    if measured.rounds < MIN_ROUNDS:
        yield f"{measured.rounds} rounds, fewer than {MIN_ROUNDS}"
    for what, count in measured.others_than_chosen.items():
        yield f"fell back: {what} ({count} calls)"
    if not any(rank.ran for rank in measured.ranks):
        yield "no fused call is in the ledger"


def _of_the_figures(measured: Measurement) -> Iterator[str]:
    figures = measured.figures
    excess, c = figures["serial excess"].median, figures["c"].median
    if abs(excess) > MAX_SERIAL_EXCESS:
        yield f"Ts is {excess:+.1%} of Tg + Tc away from it, more than {MAX_SERIAL_EXCESS:.0%}"
    if not C_RANGE[0] <= c <= C_RANGE[1]:
        yield f"c is {c:.2f}, outside {C_RANGE[0]} to {C_RANGE[1]}"
    share = measured.share_of_link
    if share is not None and share < MIN_SHARE_OF_LINK:
        yield f"the collective alone reaches {share:.0%} of the link, less than {MIN_SHARE_OF_LINK:.0%}"
    if CONTROL not in measured.seconds:
        yield "there is no negative control: the backend cannot switch overlap off"
        return
    control = figures["H, overlap off"].median
    if abs(control) > control_tolerance(c):
        yield f"with overlap off H is {control:.1%}, not 0 within {control_tolerance(c):.1%}"


def control_tolerance(c: float) -> float:
    """What H may be without overlap: the 3% of Tg + Tc by which Ts may differ, as a share of Tc."""
    return MAX_SERIAL_EXCESS * (1 + 1 / c)
