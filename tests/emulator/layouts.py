"""Every factorisation of eight devices into data, pipeline, sharding and tensor, on the emulated npu, against one
process on the CPU, and once sixteen devices with two along each axis. `make test-layouts` sets up what it needs and
runs this file; `make test` does not.

The other choices (sequence parallelism, MC2, recomputation, the stage of sharding, interleaving, heads of keys and
values, tied embeddings) change from layout to layout. Each two of them meet in some run.

LAYOUT_STEPS=50 LAYOUT_DTYPE=bfloat16 change what is run. LAYOUT_CHART=rounding.svg draws the differences of all steps.

float32: the losses of the first ten steps are within 1e-5 relative, those of fifty within 1e-4.
bfloat16: the oracle is one process in float32, whose own error is ten thousand times smaller. The composition is one
process in bfloat16 on Paddle's own ops. A layout's losses and weights may be off by twice what the composition's are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.train.metrics import read_log
from tests.emulator import rounding_chart
from tests.emulator.emulated import run
from tests.emulator.test_sft import created, reasons, require_twice_the_composition
from tests.launch import LAUNCH
from tests.llama.layouts import all_pairs, covering, described, name_of, pairs, title
from tests.llama.test_sft import weights

STEPS = int(os.environ.get("LAYOUT_STEPS", "10"))
DTYPE = os.environ.get("LAYOUT_DTYPE", "float32")
CHART = os.environ.get("LAYOUT_CHART")
BOUNDS = {"float32": {10: 1e-5, 50: 1e-4}, "bfloat16": {}}  # relative, up to a step
MARKS = [step for step in (1, 2, 5, 10, 20, 50) if step <= STEPS]
ROWS = 8
# Eight stages and eight tensor-parallel ranks have something each; 511 tokens do not divide.
SIZES = {
    "vocab_size": 511,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 9,
    "num_attention_heads": 8,
    "head_dim": 16,
    "initializer_range": 0.05,
}
if DTYPE == "bfloat16":  # the vendor's rope takes heads of 64, its fused products inner sizes from 256 of two ranks
    SIZES |= {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
EIGHT = [Degrees(*each) for each in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(each) == 8]
EVERYTHING = {"recompute": False, "tied": True, "grouped": True, "sequence": True, "mc2": True, "chunks": 2, "stage": 3}
RUNS = [*covering(EIGHT), (Degrees(2, 2, 2, 2), EVERYTHING)]
PROGRAM = Path(__file__).with_name("sft_with_ledger.py")
ROOT = {"PYTHONPATH": str(Path(__file__).parents[2])}


def sizes_of(choice):
    return {"num_key_value_heads": 4 if choice["grouped"] else 8, "tie_word_embeddings": choice["tied"]}


def flags_of(degrees, choice):
    flags = {"recompute": True, "recompute_granularity": choice["granularity"]} if choice["recompute"] else {}
    if degrees.tensor > 1:
        flags |= {"tensor_parallel_degree": degrees.tensor, "sequence_parallel": choice["sequence"]}
    if degrees.pipeline > 1:
        flags |= {"pipeline_parallel_degree": degrees.pipeline, "virtual_pp_degree": choice.get("chunks", 1)}
    if degrees.sharding > 1:
        flags |= {"sharding_parallel_degree": degrees.sharding, "sharding": f"stage{choice['stage']}"}
    return flags | {"gradient_accumulation_steps": ROWS // (degrees.data * degrees.sharding)}


def command(launch, model, output, **flags):
    data = Path(model).with_name("data")
    folders = {"model_name_or_path": model, "dataset_name_or_path": data, "output_dir": output}
    steps = {"max_steps": STEPS, "learning_rate": 1e-3, "src_length": 60, "max_length": 96}
    words = [f"--{name}={value}" for name, value in {**steps, **folders, **flags}.items()]
    return [sys.executable, *launch, str(PROGRAM), *words]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """A model's folder, by its sizes. An epoch of 60 rows ends with four."""

    @functools.cache
    def made(*sizes):
        model = created(tmp_path_factory.mktemp("model"), SIZES | dict(sizes))
        train = Path(model).with_name("data") / "train.json"
        train.write_text("\n".join(train.read_text(encoding="utf-8").splitlines()[:60]), encoding="utf-8")
        return model

    return lambda sizes: made(*sizes.items())


@pytest.fixture(scope="module")
def alone(model_of, table):
    """The output of one process on the CPU, by the model's sizes and the dtype; in bfloat16 of Paddle's own ops."""

    @functools.cache
    def trained(dtype, *sizes):
        model = model_of(dict(sizes))
        output = Path(model).with_name(f"alone-{dtype}")
        words = command([], model, output, gradient_accumulation_steps=ROWS, bf16=dtype == "bfloat16")
        settings = os.environ | ROOT | ({"FUSIONKIT_BACKEND": "eager"} if dtype == "bfloat16" else {})
        result = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=3000)
        assert result.returncode == 0, result.stderr[-4000:]
        if dtype == "bfloat16":
            ops = {(op, backend) for op, backend, _ in ledgers(result.stdout)[0]["ledger"]}
            assert {backend for _, backend in ops} == {"eager"}
            table.append(
                Result(
                    "one process, the composition", f"{dict(sizes)}", *apart(output, trained("float32", *sizes), model)
                )
            )
        return output

    return lambda dtype, sizes: trained(dtype, *sizes.items())


@dataclasses.dataclass(frozen=True)
class Result:
    """A row of the table: how far a run is from one process in float32. losses: up to each step."""

    name: str
    choices: str
    losses: list[float]
    evaluation: float
    weights: float

    def __str__(self):
        losses = [self.losses[mark - 1] for mark in MARKS]
        figures = " | ".join(f"{figure:.1e}" for figure in (*losses, self.evaluation, self.weights))
        return f"| {self.name} | {self.choices} | {figures} |"


@pytest.fixture(scope="module")
def table():
    """Printed in the end: the largest relative difference of the losses up to a step, of the evaluation's loss, and the
    distance of the final weights as a part of the way that training went."""
    rows = []
    yield rows
    if not rows:  # none came so far
        return
    heads = ["layout", "beside", *(f"step {mark}" for mark in MARKS), "evaluation", "weights"]
    largest = zip(*([*row.losses, row.evaluation, row.weights] for row in rows), strict=True)
    total = Result("the largest", "", *split([max(column) for column in largest]))
    print(f"\n\nDifferences from one process in float32, {STEPS} steps in {DTYPE}:\n")
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", *rows, total, sep="\n")
    if CHART:
        title = f"losses of {STEPS} steps in {DTYPE} on emulated npus, beside one process in float32"
        rounding_chart.draw(Path(CHART), title, {described_row(row): row.losses for row in rows}, BOUNDS[DTYPE])


def described_row(row):
    return f"{row.name}: {row.choices}" if row.choices else row.name


def split(figures):
    return figures[:-2], *figures[-2:]


def apart(output, expected, model):
    relative = np.abs(np.divide(losses_of(output), losses_of(expected)) - 1)
    evaluation = abs(evaluation_of(output) / evaluation_of(expected) - 1)
    first, ours, theirs = (weights(Path(folder)) for folder in (model, output, expected))
    assert ours.keys() == theirs.keys()
    growth = np.maximum.accumulate(relative).tolist()
    return growth, evaluation, distance(ours, theirs) / distance(first, theirs)


def losses_of(output):
    losses = [line["loss"] for line in read_log(output / "log.jsonl")]
    assert len(losses) == STEPS
    return losses


def evaluation_of(output):
    return read_log(output / "log.jsonl")[-1]["eval_loss"]


def distance(one, other):
    return float(np.sqrt(sum(np.sum((one[name] - other[name]) ** 2) for name in other)))


def ledgers(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"ledger"')]


def test_every_pair_of_choices_meets():
    assert set().union(*(pairs(*each) for each in RUNS)) >= all_pairs(EIGHT)


@pytest.mark.parametrize(("degrees", "choice"), RUNS, ids=itertools.starmap(title, RUNS))
def test_a_layout_trains_as_one_process(model_of, alone, table, tmp_path, degrees, choice):
    model, exact = model_of(sizes_of(choice)), alone("float32", sizes_of(choice))
    output = tmp_path / "out"
    for ledger in launched(model, output, degrees, choice):
        require_kernels(ledger, degrees, choice)
    table.append(Result(name_of(degrees), described(choice), *apart(output, exact, model)))
    print(table[-1])
    if DTYPE == "float32":
        require_float32(table[-1], output, exact)
    else:
        require_bfloat16(model, output, exact, alone("bfloat16", sizes_of(choice)))


def launched(model, output, degrees, choice):
    """The ledgers of all processes."""
    logs, processes = output.with_name("log"), degrees.processes
    launch = [LAUNCH, "--devices", ",".join(map(str, range(processes))), "--log_dir", str(logs)]
    words = command(launch, model, output, bf16=DTYPE == "bfloat16", **flags_of(degrees, choice))
    mc2 = {"FUSIONKIT_MC2": str(int(choice.get("mc2", True)))}
    result = run("npu", *words, options=("--devices", str(processes), "--timeout", "600"), timeout=3500, **ROOT, **mc2)
    texts = [path.read_text() for path in sorted(logs.glob("workerlog.*"))]
    assert result.returncode == 0, "".join(text[-2000:] for text in texts)
    found = [ledger for text in texts for ledger in ledgers(text)]
    assert len(found) == processes
    return found


# Ranks of tensor that leave enough features: of 1,024 columns, and of 512 rows. A sum takes any.
MOST = {"all_gather_matmul": 4, "matmul_reduce_scatter": 2, "matmul_all_reduce": 8}


def require_kernels(ledger, degrees, choice):
    """Those that the npu has run on it. Its products fused with collectives take 16 bits, and from 256 features."""
    chosen, is_short = ("npu", "chosen"), DTYPE == "bfloat16"
    assert reasons(ledger, "fusion_rms_norm") == {chosen}
    for op in ("fusion_rope", "flash_attention"):
        assert (reasons(ledger, op) == {chosen}) == is_short, op
    in_a_row = choice.get("sequence", True)
    products = ("all_gather_matmul", "matmul_reduce_scatter") if in_a_row else ("matmul_all_reduce",)
    for op in products if degrees.tensor > 1 else ():
        assert bool(reasons(ledger, op)) == choice["mc2"], op
        if choice["mc2"]:
            assert (chosen in reasons(ledger, op)) == (is_short and degrees.tensor <= MOST[op]), op


def require_float32(result, output, exact):
    """Rounding grows from step to step. AdamW's first steps take the sign of gradients that may be rounding alone."""
    ours, theirs = losses_of(output), losses_of(exact)
    for step, bound in BOUNDS["float32"].items():
        np.testing.assert_allclose(ours[:step], theirs[:step], rtol=bound)
    assert result.evaluation < (1e-5 if STEPS <= 10 else 1e-4)
    assert result.weights < 1e-3


def require_bfloat16(model, output, exact, composed):
    """Twice the error of one process whose ops are composed, and two roundings of float32, which a loss has."""
    wanted, ours, theirs = (([*losses_of(folder), evaluation_of(folder)], {}) for folder in (exact, output, composed))
    require_twice_the_composition(wanted, ours, theirs, "bfloat16")
    assert apart(output, exact, model)[-1] <= 2 * apart(composed, exact, model)[-1]
