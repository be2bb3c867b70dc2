"""A small Llama from nothing to answers: created, fine-tuned on the shipped data, exported, asked.

python -m examples.llama2_13b.demo
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b import data, flags, metrics
from examples.llama2_13b.create import CreateFlags, create
from examples.llama2_13b.data import Example
from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.flags import flag
from examples.llama2_13b.predict import PredictFlags, Predictor
from examples.llama2_13b.prompts import Prompt
from examples.llama2_13b.sft import sft
from examples.llama2_13b.sft_flags import SftFlags

PROGRAM = "examples.llama2_13b.demo"
HERE = Path(__file__).parent
TUNING = HERE / "configs" / "sft_demo.json"
NUM_HELD_IN, NUM_HELD_OUT = 10, 3
MIN_EXACT = 9  # of the held-in targets
MAX_LOSS = 0.3  # of the last step


@dataclass(frozen=True)
class DemoFlags:
    output_dir: str = flag("everything goes here; an older demo there is replaced", "output/demo")


def demo(of_demo: DemoFlags) -> int:
    """0 if at least MIN_EXACT held-in prompts get their target back and the loss fell below MAX_LOSS, else 1."""
    started = time.perf_counter()
    start, tuned, exported = (str(Path(of_demo.output_dir, name)) for name in ("start", "tuned", "exported"))
    dataset = str(HERE / "data")

    print("== 1. create: random weights, and a tokenizer trained on the data")
    create(CreateFlags(str(HERE / "configs" / "demo.json"), dataset, start, overwrite_output_dir=True))

    print("== 2. fine-tune")
    arguments = ["--model_name_or_path", start, "--dataset_name_or_path", dataset, "--output_dir", tuned]
    if code := sft(flags.parse(SftFlags, [str(TUNING), *arguments, "--overwrite_output_dir"], PROGRAM)):
        return code

    print("== 3. export: a static program with device-neutral ops")
    export(ExportFlags(tuned, exported))

    print("== 4. predict with the static program, greedily")
    held_in, held_out = (data.read_examples(data.split_files(dataset, split)) for split in ("train", "dev"))
    print(f"\n{NUM_HELD_IN} prompts of the training data\n")
    num_exact = ask(exported, spread(held_in, NUM_HELD_IN))
    print(f"\n{NUM_HELD_OUT} prompts that it has never seen\n")
    ask(exported, spread(held_out, NUM_HELD_OUT))

    losses = [line["loss"] for line in metrics.read_log(Path(tuned) / "log.jsonl")]
    print(f"\n{num_exact} of {NUM_HELD_IN} targets of the training data came back exactly")
    print(f"loss: {losses[0]:.2f} at the first step, {losses[-1]:.3f} at the last")
    print(f"loss curve: {tuned}/loss.png; every step: {tuned}/log.jsonl; exported model: {exported}")
    print(f"took {time.perf_counter() - started:.0f} s")
    if num_exact < MIN_EXACT or losses[-1] >= MAX_LOSS:
        print(f"failed: at least {MIN_EXACT} targets must come back and the loss must fall below {MAX_LOSS}")
        return 1
    return 0


def spread(examples: Sequence[Example], count: int) -> list[Prompt]:
    """So many examples of one turn, evenly over the data."""
    single = [example for example in examples if len(example.turns) == 1]
    return [Prompt.from_example(single[number * len(single) // count]) for number in range(count)]


def ask(exported: str, asked: list[Prompt]) -> int:
    """Show the answers, and return how many are the target."""
    predictor = Predictor(PredictFlags(exported, max_length=128, decode_strategy="greedy_search"), asked)
    num_exact = 0
    for prediction in predictor.run():
        print(prediction.banners())
        num_exact += prediction.output == prediction.prompt.target
    return num_exact


if __name__ == "__main__":
    flags.main(DemoFlags, demo, PROGRAM)
