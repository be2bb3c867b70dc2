"""Supervised fine-tuning of a Llama on one device, or on several: copies of the model, each on one or more.

    python -m examples.llama2_13b.sft FLAGS.json --output_dir output/sft

Ctrl-C or SIGTERM saves a checkpoint after the running step; `--resume_from_checkpoint last` goes on from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.data.chat_template import TEMPLATE, ChatTemplate
from examples.llama2_13b.data.conversation import Template, template_from, template_of
from examples.llama2_13b.data.jinja_template import JinjaTemplate
from examples.llama2_13b.data.packing import one_a_row, pack_greedily, pack_sequentially
from examples.llama2_13b.data.sample_batches import SampleBatches
from examples.llama2_13b.data.samples import Sample, describe_dropped, encode, read_examples, split_files
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import HUGGING_FACE_TEMPLATE, TokenizerFolder, without_chat_template
from examples.llama2_13b.io.flags import flag, main
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import run
from examples.llama2_13b.train.loss import next_token
from examples.llama2_13b.train.training_flags import TrainingFlags
from fusionkit import keep_freed_memory

PROGRAM = "examples.llama2_13b.sft"
NO_TEMPLATE = "none"


@dataclass(frozen=True, kw_only=True)
class SftFlags(TrainingFlags):
    """What fine-tuning is told beside the loop's flags: how texts become rows."""

    COMMAND = "sft"

    dataset_name_or_path: str = flag("folder with train.json and dev.json, or folders train and dev of such files")
    src_length: int | None = flag("tokens kept of a source, its end; 1024 or half of max_length if not given", None)
    max_length: int | None = flag(
        "tokens of a sample, and of a packed row; 2048 or the model's positions if not given", None
    )
    chat_template: str | None = flag(
        "file: JSON with system and conversation, see configs/llama2_chat.json, or .jinja of Hugging Face; "
        f"{NO_TEMPLATE} for texts without one; the model's own if not given",
        None,
    )
    zero_padding: bool = flag("pack samples into rows of max_length", False)
    greedy_zero_padding: bool = flag("pack into the row with the largest free space, 500 samples at a time", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("src_length", "max_length"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "at least 1")
        if self.src_length is not None and self.max_length is not None:
            self.require(self.src_length < self.max_length, "src_length", f"below max_length {self.max_length}")
        self.require(self.zero_padding or not self.greedy_zero_padding, "zero_padding", "true with greedy_zero_padding")

    def within(self, positions: int) -> SftFlags:
        """These flags with the lengths that were left open, for a model of so many positions."""
        fits = self.max_length is None or self.max_length <= positions
        self.require(fits, "max_length", f"at most {positions}, the model's positions")
        max_length = self.max_length or min(2048, positions)
        src_length = self.src_length or min(1024, max(1, max_length // 2))
        return dataclasses.replace(self, max_length=max_length, src_length=src_length)

    @property
    def lengths(self) -> tuple[int, int]:
        """src_length and max_length, which `within` has filled in."""
        return cast(tuple[int, int], (self.src_length, self.max_length))

    def deciding(self) -> dict[str, object]:
        names = ("src_length", "max_length", "zero_padding", "greedy_zero_padding")
        return super().deciding() | {name: getattr(self, name) for name in names}

    def batches(self, samples: list[Sample], pad_token_id: int | None) -> SampleBatches:
        if not self.zero_padding:
            return SampleBatches(samples, one_a_row, None, pad_token_id)
        pack = pack_greedily if self.greedy_zero_padding else pack_sequentially
        max_length = self.lengths[1]
        return SampleBatches(samples, partial(pack, max_length=max_length), max_length, pad_token_id)


def sft(flags: SftFlags) -> int:
    """Run to the end and return 0, or to a signal and return 128 + its number.

    Raises:
        ValueError, OSError: something in flags, data, model or checkpoint is wrong; nothing was trained or removed yet.
        FloatingPointError: loss or gradients are not finite, on all processes; the last checkpoint is whole.
    """
    return run.start(flags, lambda mesh: fine_tune(flags, mesh, run.open_model))


def fine_tune(flags: SftFlags, mesh: Mesh, open_model: run.OpenModel) -> int:
    """What `sft` and `lora` do once the processes have met; `open_model` decides what is trained."""
    source = Path(flags.model_name_or_path)
    tokenizer = Tokenizer.from_pretrained(source)
    TokenizerFolder(source).require_end(tokenizer.eos_token_id)
    positions = run.model_config(flags, mesh).max_position_embeddings
    flags = flags.within(positions)
    template, files = template_and_files(flags, tokenizer)
    train, evaluation = (read_samples(flags, split, tokenizer, template) for split in ("train", "dev"))
    flags.require(len(train) > 0, "dataset_name_or_path", "a folder with at least one training sample")
    stale = {TEMPLATE, HUGGING_FACE_TEMPLATE} - set(files)  # export would take them for this run's
    return run.train(
        flags,
        mesh,
        next_token,
        flags.batches(train, tokenizer.pad_token_id),
        flags.batches(evaluation, tokenizer.pad_token_id),
        files,
        stale,
        describe_data(flags, template, train, evaluation),
        open_model=open_model,
    )


def template_and_files(flags: SftFlags, tokenizer: Tokenizer) -> tuple[Template | None, dict[str, bytes]]:
    """What conversations are written with, and the files that the trained model gets: prediction follows the same."""
    source = Path(flags.model_name_or_path)
    if flags.chat_template is None:
        template = template_of(source)
        is_json = isinstance(template, ChatTemplate)
        own = {TEMPLATE: (source / TEMPLATE).read_bytes()} if is_json else {}
        return template, {**tokenizer.files, **own}
    files = without_chat_template(tokenizer.files)
    if flags.chat_template == NO_TEMPLATE:
        return None, files
    template = template_from(flags.chat_template, source)
    name = HUGGING_FACE_TEMPLATE if isinstance(template, JinjaTemplate) else TEMPLATE
    return template, {**files, name: Path(flags.chat_template).read_bytes()}


def read_samples(flags: SftFlags, split: str, tokenizer: Tokenizer, template: Template | None) -> list[Sample]:
    examples = read_examples(split_files(flags.dataset_name_or_path, split))
    return [encode(example, tokenizer, *flags.lengths, template) for example in examples]


def describe_data(
    flags: SftFlags, template: Template | None, train: list[Sample], evaluation: list[Sample]
) -> Iterator[str]:
    """The samples, what was cut to make them fit, and the model's own chat template if it is followed."""
    tokens = sum(map(len, train))
    yield f"training samples: {len(train)} of {tokens} tokens; evaluation samples: {len(evaluation)}"
    lengths = f"--src_length {flags.src_length}, --max_length {flags.max_length}"
    for name, samples in (("training", train), ("evaluation", evaluation)):
        yield f"{name} samples cut: {describe_dropped(samples)} ({lengths})"
    if flags.chat_template is None and template is not None:
        own = template.where if isinstance(template, JinjaTemplate) else Path(flags.model_name_or_path) / TEMPLATE
        yield f"chat template: {own}; --chat_template names another, or {NO_TEMPLATE}"


if __name__ == "__main__":
    keep_freed_memory()  # gradients are allocated anew in each step
    main(SftFlags, sft, PROGRAM)
