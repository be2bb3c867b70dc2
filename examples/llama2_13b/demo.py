"""A small Llama from nothing to answers: created, fine-tuned on the shipped data, exported, asked what it never saw.

python -m examples.llama2_13b.demo
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data.adverts import num_named
from examples.llama2_13b.data.samples import split_files
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.generate import prompts
from examples.llama2_13b.io import flags
from examples.llama2_13b.io.flags import flag
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.predict import PredictFlags, Prediction, Predictor
from examples.llama2_13b.sft import SftFlags, sft
from examples.llama2_13b.train import metrics
from fusionkit import keep_freed_memory

PROGRAM = "examples.llama2_13b.demo"
HERE = Path(__file__).parent
TUNING = HERE / "configs" / "sft_demo.json"
MIN_NAMED = 0.8  # of the unseen prompts' attributes; a sentence about the right product with random values names 0.38
MAX_LOSS = 0.5  # the last evaluation loss as a share of the first
MAX_ANSWER = 96  # tokens
SHOWN = ("type#", "类型#")  # how prompts in English and Chinese begin: an answer of each is shown
ABOUT = """\
What this shows: under a million parameters, trained for under a minute, put together what they have seen apart.
Every value occurs in the training data, no prompt's combination of values does. The sentences come from a small
grammar (texts/grammar.json). About other products, or values that the grammar lacks, the model knows nothing."""


@dataclass(frozen=True)
class DemoFlags:
    output_dir: str = flag("everything goes here; an older demo there is replaced", "output/demo")


def demo(of_demo: DemoFlags) -> int:
    """0 if the evaluation loss fell below MAX_LOSS of the first and MIN_NAMED of the attributes were named, else 1."""
    started = time.perf_counter()
    start, tuned, exported = (str(Path(of_demo.output_dir, name)) for name in ("start", "tuned", "exported"))
    dataset = str(HERE / "texts")

    print("== 1. create: random weights, and a tokenizer trained on the data")
    create(CreateFlags(str(HERE / "configs" / "demo.json"), dataset, start, overwrite_output_dir=True))

    print("== 2. fine-tune")
    arguments = ["--model_name_or_path", start, "--dataset_name_or_path", dataset, "--output_dir", tuned]
    if code := sft(flags.parse(SftFlags, [str(TUNING), *arguments, "--overwrite_output_dir"], PROGRAM)):
        return code

    print("== 3. export: a static program with device-neutral ops")
    export(ExportFlags(tuned, exported))

    print("== 4. predict with the static program, greedily: prompts that were never seen in training")
    predictions = answers(exported, dataset)
    for beginning in SHOWN:
        say("\n" + next(one for one in predictions if one.prompt.question.startswith(beginning)).banners())

    evaluated = [line for line in metrics.read_log(Path(tuned) / "log.jsonl") if "eval_loss" in line]
    first, last = evaluated[0], evaluated[-1]
    share = report(predictions)
    losses = [f"{line['eval_loss']:.3f} at step {line['step']}" for line in (first, last)]
    print(f"evaluation loss: {', '.join(losses)}")
    print(f"loss curve: {tuned}/loss.png; every step: {tuned}/log.jsonl; exported model: {exported}")
    print(f"\n{ABOUT}")
    print(f"took {time.perf_counter() - started:.0f} s")
    if last["eval_loss"] > MAX_LOSS * first["eval_loss"] or share < MIN_NAMED:
        rule = f"at least {MIN_NAMED:.0%} of the attributes must be named"
        print(f"failed: the evaluation loss must fall below {MAX_LOSS:.0%} of the first, and {rule}")
        return 1
    return 0


def answers(exported: str, dataset: str) -> list[Prediction]:
    """Of the exported model to every prompt of the evaluation data."""
    (file,) = split_files(dataset, "dev")
    asked = PredictFlags(exported, max_length=MAX_ANSWER, batch_size=16, decode_strategy="greedy_search")
    return list(Predictor(asked, prompts.from_file(file)).run())


def report(predictions: list[Prediction]) -> float:
    """Print how many attributes the answers name, and return their share."""
    counts = [num_named(one.prompt.question, one.output) for one in predictions]
    named, attributes = (sum(column) for column in zip(*counts, strict=True))
    exact = sum(one.output == one.prompt.target for one in predictions)
    print(f"\nunseen prompts: {named} of {attributes} attributes named")
    print(f"unseen prompts: {exact} of {len(predictions)} answers are the target to the letter")
    return float(named / attributes)


if __name__ == "__main__":
    keep_freed_memory()  # gradients are allocated anew in each step
    flags.main(DemoFlags, demo, PROGRAM)
