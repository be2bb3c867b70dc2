"""The promises of the gpu backend, judged by the figures of a run: reached, missed, or not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Pieces = dict[str, Any]
Verdict = tuple[str, str, str]  # promise, "reached" | "missed" | "not run", the figure that decides
MEMORY_OPS = ("fusion_rms_norm", "fusion_add_rms_norm", "fusion_rope", "swiglu")


def judged(pieces: Pieces, dry_run: bool) -> list[Verdict]:
    found = []
    for promise, judge in PROMISES:
        try:
            figure, reached = (None, False) if dry_run else judge(pieces)
        except (KeyError, ValueError):  # the piece, or a contestant of it, was not run
            figure, reached = None, False
        verdict = "not run" if figure is None else "reached" if reached else "missed"
        found.append((promise, verdict, figure or ""))
    return found


def rows(pieces: Pieces, piece: str, **wanted: str) -> Iterator[dict[str, Any]]:
    for row in pieces[piece]["rows"]:
        if "reason" not in row["outcome"] and all(row[name] == value for name, value in wanted.items()):
            yield row


def least_share(pieces: Pieces, direction: str, bound: float) -> tuple[str, bool]:
    worst = min(
        (row["share"], row["call"])
        for op in MEMORY_OPS
        for row in rows(pieces, "memory", direction=direction, contestant="fusionkit")
        if row["call"].startswith(f"{op} ")
    )
    return f"{worst[0]:.1%} at {worst[1]}", worst[0] >= bound


def slower_than(pieces: Pieces, piece: str, ours: str, peers: tuple[str, ...], factor: float = 1.0) -> tuple[str, bool]:
    """Ours against the fastest peer of each call: worst ratio of medians; intervals that meet are no difference."""
    worst, reached, label = 0.0, True, ""
    for row in rows(pieces, piece, contestant=ours):
        others = [
            each["outcome"]
            for peer in peers
            for each in rows(pieces, piece, call=row["call"], direction=row["direction"], contestant=peer)
        ]
        if not others:
            continue
        best = min(others, key=lambda outcome: outcome["median_us"])
        ratio = row["outcome"]["median_us"] / best["median_us"]
        if ratio > worst:
            worst, label = ratio, f"{row['call']} {row['direction']}"
        reached = reached and row["outcome"]["low_us"] <= best["high_us"] * factor
    if not label:
        raise ValueError("no peer ran")
    return f"{worst:.2f}x the fastest peer's time at {label}", reached


SDPA = ("SDPA cuDNN", "SDPA flash", "SDPA efficient", "SDPA math")


def documents(pieces: Pieces) -> tuple[str, bool]:
    only = [row for row in pieces["attention"]["rows"] if "documents" in row["call"]]
    figure, reached = slower_than({"attention": {"rows": only}}, "attention", "fusionkit", SDPA, 0.5)
    return figure, reached


def vocabulary(pieces: Pieces) -> tuple[str, bool]:
    """The peak beyond the gradients may grow by 10% from the smallest vocabulary to four times as many."""
    held = [
        m["peak_bytes_beyond_gradients"]
        for m in pieces["memory_of_cross_entropy"]["rows"]
        if m["contestant"] == "fusionkit"
    ]
    return f"{max(held) / 2**20:,.0f} MiB at most, {min(held) / 2**20:,.0f} at least", max(held) <= 1.1 * min(held)


def product_share(pieces: Pieces) -> tuple[str, bool]:
    worst = min(row["share"] for row in rows(pieces, "cross_entropy", contestant="fusionkit"))
    return f"{1 / worst:.2f}x at worst", worst >= 1 / 1.15


def layer_gain(pieces: Pieces) -> tuple[str, bool]:
    return slower_than(pieces, "layer", "fusionkit", ("torch.compile",), 1 / 1.1)


def utilisation(pieces: Pieces) -> tuple[str, bool]:
    worst = min(row["share"] for row in rows(pieces, "layer", contestant="fusionkit"))
    return f"{worst:.1%} at worst", worst >= 0.55


def cold_start(pieces: Pieces) -> tuple[str, bool]:
    first, cached = pieces["cold_start"]["rows"]
    late = len(first["compiled_after_warmup"])
    figure = f"{first['warmup_s']:.0f} s, cached {cached['warmup_s']:.0f} s, {late} programs later"
    return figure, first["warmup_s"] < 60 and late == 0


Judge = Callable[[Pieces], tuple[str, bool]]
PROMISES: tuple[tuple[str, Judge], ...] = (
    (
        "rms_norm, add_rms_norm, rope, swiglu: forward >= 92% of copy",
        lambda p: least_share(p, "forward", 0.92),
    ),
    ("... forward + backward >= 88%", lambda p: least_share(p, "forward + backward", 0.88)),
    (
        "... never slower than Liger-Kernel or torch.compile",
        lambda p: slower_than(p, "memory", "fusionkit", ("Liger-Kernel", "torch.compile")),
    ),
    (
        "flash_attention: at least the best of SDPA's backends at every size",
        lambda p: slower_than(p, "attention", "fusionkit", SDPA),
    ),
    (
        "... its own kernel >= 75% of the best",
        lambda p: slower_than(p, "attention", "fusionkit, own kernel", SDPA, 1 / 0.75),
    ),
    ("... packed documents >= 2x masked SDPA", documents),
    ("fused_linear_cross_entropy <= 1.15x the time of the product alone", product_share),
    ("... memory independent of the vocabulary", vocabulary),
    ("decoder layer, forward + backward >= 1.1x torch.compile", layer_gain),
    ("... >= 55% of the measured product rate", utilisation),
    ("cold start: a step's kernels in under 60 s, cached, none compiled later", cold_start),
)
