"""Measured rows of several files, brought into one form. A file's form is known by its header."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import Layout, Recompute
from fusionkit_planner.system import System
from fusionkit_planner.validate.systems import A100, B200, MEGATRON_CORE, MEGATRON_GPT, MEGATRON_GPT_NODE, Device

from fusionkit.errors import argument_error

GIB = 2.0**30
GPT_VOCABULARY = 51200  # of GPT-2, padded to a multiple of 128 on each of 8 ranks
NODE = 8
MEND = "Correct that line, or delete it"
FORMS_ARE = "docs/planner.md lists the four forms of measured steps"


@dataclass(frozen=True)
class Row:
    """One measured step.

    Args:
        name: where it stands, for messages.
        seconds: of a step; None in a row of memory alone.
        state_bytes: parameters, gradients and optimizer of a device, where measured.
        activation_bytes: of a device, where measured.
        peak_bytes: all that was allocated on a device at most, where measured.
    """

    name: str
    device: Device
    system: System
    architecture: Architecture
    layout: Layout
    sequence: int
    seconds: float | None
    state_bytes: float | None = None
    activation_bytes: float | None = None
    peak_bytes: float | None = None

    @property
    def group(self) -> str:
        """Rows with the same text differ by their layout only: the same model, devices and rows a step."""
        devices, rows = self.layout.devices, self.layout.global_batch
        return f"{self.architecture.name}, sequence {self.sequence}, {rows} rows, {devices} {self.device.name}"


def read(paths: Iterable[Path]) -> list[Row]:
    """All rows of the files, in their order.

    Raises:
        ValueError: a file is not there, has no known header, or a value that does not fit.
    """
    return [row for path in paths for row in _read(path)]


def _read(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = columns
            form = next((form for form in FORMS if set(form.columns) <= set(columns)), None)
            if form is None:
                known = "; or ".join(",".join(form.columns) for form in FORMS)
                raise argument_error(
                    "plan validate", "file", f"one with the columns {known}", f"{path} with {columns}", advice=FORMS_ARE
                )
            rows = [_row(form, values, f"{path.name}:{table.line_num}") for values in table]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise argument_error("plan validate", "file", "CSV text that can be read", str(path), why, FORMS_ARE) from None
    if not rows:
        advice = "Leave it out, or measure some steps"
        raise argument_error("plan validate", "file", "one with rows below its header", str(path), advice=advice)
    return rows


def _row(form: Form, values: dict[str, str], name: str) -> Row:
    try:
        row = form.read(values, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise argument_error(
            "plan validate", name, "a row of the file's form", dict(values), str(error), MEND
        ) from None
    if row.seconds is not None and not 0 < row.seconds < math.inf:
        raise argument_error("plan validate", name, "a row whose step takes time", row.seconds, advice=MEND)
    return row


def _counts(values: dict[str, str], names: Iterable[str]) -> dict[str, int]:
    found = {name: int(values[name]) for name in names}
    if wrong := [name for name, count in found.items() if count < 1]:
        raise ValueError(f"{wrong[0]} is not above 0")
    return found


def _gpt(hidden: int, heads: int, layers: int, name: str) -> Architecture:
    return Architecture(
        name, hidden, layers, heads, heads, hidden // heads, 4 * hidden, GPT_VOCABULARY,
        is_gated=False, is_tied=True, has_biases=True,
    )  # fmt: skip


def _micro_batches(rows: int, micro_batch: int, copies: int) -> int:
    count, left = divmod(rows, micro_batch * copies)
    if left or not count:
        raise ValueError(f"{rows} rows are no multiple of {micro_batch} on each of {copies} copies")
    return count


def _a100(values: dict[str, str], name: str) -> Row:
    """Of vTrain's two files. The one of many nodes recomputes each layer."""
    of = _counts(values, (*_A100_COLUMNS, "gpus"))
    model = _gpt(of["hidden"], of["heads"], of["layers"], f"GPT {of['hidden']} x {of['layers']}")
    has_many_nodes = "billion_parameters" in values
    layout = Layout(
        tensor=of["tensor"],
        pipeline=of["pipeline"],
        data=of["data"],
        stage=0,
        micro_batch=of["micro_batch"],
        micro_batches=_micro_batches(of["global_batch"], of["micro_batch"], of["data"]),
        recompute="full" if has_many_nodes else "none",
    )
    if layout.devices != of["gpus"]:
        raise ValueError(f"tensor x data x pipeline are {layout.devices} GPUs, and gpus is {of['gpus']}")
    system = MEGATRON_GPT if has_many_nodes else MEGATRON_GPT_NODE
    return Row(name, A100, system, model, layout, of["sequence"], float(values["step_ms"]) / 1e3)


_A100_COLUMNS = ("global_batch", "micro_batch", "hidden", "heads", "layers", "sequence", "tensor", "data", "pipeline")

# Grattafiori et al. 2024, arXiv:2407.21783, table 3
LLAMA3 = {
    "llama3-8b": Architecture("llama3-8b", 4096, 32, 32, 8, 128, 14336, 128256),
    "llama3-70b": Architecture("llama3-70b", 8192, 80, 64, 8, 128, 28672, 128256),
    "llama3-405b": Architecture("llama3-405b", 16384, 126, 128, 8, 128, 53248, 128256),
}


def _b200(values: dict[str, str], name: str) -> Row:
    """Of SimuMax: 8 devices, one row a micro-batch, a distributed optimizer, nothing computed again."""
    degree = {axis: int(found) for axis, found in re.findall(r"(tp|pp|cp)(\d+)", values["layout"])}
    sequence = re.search(r"seq(\d+)", values["case"])
    tensor, pipeline, context = degree.get("tp", 1), degree.get("pp", 1), degree.get("cp", 1)
    layers = int(values["layers"])
    layout = Layout(
        tensor=tensor,
        pipeline=pipeline,
        context=context,
        sharding=NODE // (tensor * pipeline * context),
        micro_batches=int(values["micro_batches"]),
        sequence_parallel=tensor > 1,
    )
    model = replace(LLAMA3[values["model"]], num_hidden_layers=layers, name=f"{values['model']} of {layers} layers")
    return Row(
        name, B200, MEGATRON_CORE, model, layout, int(sequence[1]) if sequence else 4096,
        float(values["step_ms"]) / 1e3, peak_bytes=_bytes(values.get("peak_allocated_gib")),
    )  # fmt: skip


def _korthikanti(values: dict[str, str], name: str) -> Row:
    """A model stands in two rows: all computed again, and attention alone with sequence parallelism."""
    of = _counts(values, _KORTHIKANTI_COLUMNS)
    again: dict[str, Recompute] = {"none": "none", "selective": "selective", "full": "full"}
    copies = of["gpus"] // (of["tensor"] * of["pipeline"])
    layout = Layout(
        tensor=of["tensor"],
        pipeline=of["pipeline"],
        virtual_stages=of["virtual_stages"],
        data=copies,
        stage=0,
        micro_batch=of["micro_batch"],
        micro_batches=_micro_batches(of["global_batch"], of["micro_batch"], copies),
        recompute=again[values["recompute"]],
        sequence_parallel=values["sequence_parallel"] == "yes",
    )
    model = _gpt(of["hidden"], of["heads"], of["layers"], values["model"])
    seconds = float(values["step_s"]) if values["step_s"] else None
    return Row(
        name, A100, MEGATRON_GPT, model, layout, int(values["sequence"]), seconds,
        _bytes(values.get("state_gib")), _bytes(values.get("activations_gib")),
    )  # fmt: skip


_KORTHIKANTI_COLUMNS = ("hidden", "heads", "layers", "tensor", "pipeline", "virtual_stages", "gpus", "global_batch",
                        "micro_batch")  # fmt: skip


def _bytes(gib: str | None) -> float | None:
    return float(gib) * GIB if gib else None


@dataclass(frozen=True)
class Form:
    """A file's columns, and how a row is read."""

    columns: Sequence[str]
    read: Callable[[dict[str, str], str], Row]


FORMS = (
    Form(("gpus", *_A100_COLUMNS, "step_ms"), _a100),
    Form(("case", "model", "layout", "layers", "micro_batches", "step_ms"), _b200),
    Form(
        ("model", "gpus", "hidden", "heads", "virtual_stages", "recompute", "sequence_parallel", "step_s"), _korthikanti
    ),
)
