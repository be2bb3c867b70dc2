"""Results as text: a Markdown table a direction and state, then the promised ratios."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fusionkit_bench.contestants import COMPOSITION, KERNEL, OP
from fusionkit_bench.markdown import markdown
from fusionkit_bench.result import Result
from fusionkit_bench.target import Judged

HEADER = (
    "op",
    "call",
    "dtype",
    "pass",
    "caches",
    "kernel ms",
    "rate",
    "ceiling",
    "of ceiling",
    "of peak",
    "spread",
    "op ms",
    "of kernel",
    "x Paddle",
    "tuned",
    "x PyTorch",
    "tuned",
)
LEGEND = """\
kernel: into results made before; op: as users call it. Ceiling: the bytes by a stream with the same reads and writes,
or the FLOPs at the rate of the fastest library's product, whichever takes longer; none is a product of fusionkit's. of
peak: the FLOPs at the best rate of registers alone, over the kernel. Other ratios are medians of each round's ratio.
spread: interquartile range over the median of the kernel. x Paddle, x PyTorch: how many times longer the composition of
the framework's own functions takes than the op, both in processes as they come, or tuned: both in processes that keep
freed memory; none where it would hold more than 4 GB, or PyTorch would take more than 10 s by the rate of its
products."""


def rows(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    for result in results:
        for direction in result.subject.directions:
            rate, unit = result.rate(direction)
            yield (
                result.subject.op_name,
                result.subject.case_name,
                result.subject.dtype,
                direction,
                result.state,
                f"{result.median(KERNEL, direction) * 1e3:.3g}",
                f"{rate:.3g} {unit}",
                result.nearest_ceiling(direction),
                f"{result.share_of_ceiling(direction):.0%}",
                percent(result.share_of_peak(direction)),
                f"{result.spread(KERNEL, direction):.0%}",
                f"{result.median(OP, direction) * 1e3:.3g}",
                f"{result.share_of_kernel(direction):.0%}",
                *(
                    times(result.times_faster(framework, direction, tuned))
                    for framework in (COMPOSITION, "torch")
                    for tuned in (False, True)
                ),
            )


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}"


def table(results: Sequence[Result]) -> str:
    return f"{markdown(HEADER, list(rows(results)))}\n\n{LEGEND}"


def targets(judged: Sequence[Judged]) -> str:
    lines = [
        (
            each.result.subject.op_name,
            each.result.subject.case_name,
            each.result.subject.dtype,
            each.target.direction,
            each.result.state,
            each.target.against,
            f"{each.target.at_least:.2f}",
            "not measured" if each.ratio is None else f"{each.ratio:.2f}",
            "" if each.ratio is None else "reached" if each.reached else "MISSED",
        )
        for each in judged
    ]
    header = ("op", "call", "dtype", "pass", "caches", "over", "promised", "measured", "")
    reached, measured = sum(each.reached for each in judged), sum(each.ratio is not None for each in judged)
    return f"{markdown(header, lines)}\n\n{reached} of {measured} ratios reached"
