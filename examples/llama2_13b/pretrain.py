"""Pretraining of a Llama on token files, from any model folder: `create` makes one with random weights.

    python -m examples.llama2_13b.pretrain FLAGS.json --output_dir output/pretrained

It runs on as many devices, stops and resumes as `sft` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.data.chat_template import TEMPLATE
from examples.llama2_13b.data.token_batches import TokenBatches, TokenRows, shares_of, split_documents
from examples.llama2_13b.data.token_files import TokenFiles, checksum
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import HUGGING_FACE_TEMPLATE, TokenizerFolder, without_chat_template
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.io.flags import flag, main
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import run
from examples.llama2_13b.train.loss import next_token
from examples.llama2_13b.train.training_flags import TrainingFlags
from fusionkit import keep_freed_memory

PROGRAM = "examples.llama2_13b.pretrain"


@dataclass(frozen=True, kw_only=True)
class PretrainFlags(TrainingFlags):
    """What pretraining is told beside the loop's flags: which tokens, and how they become rows."""

    COMMAND = "pretrain"

    input_dir: str = flag("token files: PREFIX of PREFIX.bin and PREFIX.idx, or a folder with such pairs")
    split: str = flag("shares of the documents for train, valid and test, in order", "949,50,1")
    max_seq_length: int | None = flag("tokens of a row; 4096 or the model's positions if not given", None)
    num_train_epochs: int = flag("passes over the data", 1)
    eval_iters: int | None = flag("evaluation batches, from all over the valid split; all if not given", None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.max_seq_length is None or self.max_seq_length >= 2, "max_seq_length", "at least 2")
        self.require(self.eval_iters is None or self.eval_iters >= 1, "eval_iters", "at least 1")
        rule = "one to three numbers of at least 0, such as 949,50,1, the first above 0"
        self.require(shares_of(self.split) is not None, "split", rule)

    def within(self, positions: int) -> PretrainFlags:
        """These flags with the length that was left open, for a model of so many positions."""
        fits = self.max_seq_length is None or self.max_seq_length <= positions
        self.require(fits, "max_seq_length", f"at most {positions}, the model's positions")
        return dataclasses.replace(self, max_seq_length=self.max_seq_length or min(4096, positions))

    def deciding(self) -> dict[str, object]:
        return super().deciding() | {name: getattr(self, name) for name in ("split", "max_seq_length")}

    def prefixes(self) -> list[Path]:
        """Of the token files."""
        named = Path(self.input_dir)
        if not named.is_dir() or Path(f"{named}.idx").exists():
            return [named]
        found = sorted(path.with_suffix("") for path in named.glob("*.idx"))
        self.require(bool(found), "input_dir", "PREFIX, or a folder with pairs of PREFIX.bin and PREFIX.idx")
        return found


def pretrain(flags: PretrainFlags) -> int:
    """Run to the end and return 0, or to a signal and return 128 + its number.

    Raises:
        ValueError, OSError: something in flags, data, model or checkpoint is wrong; nothing was trained or removed yet,
            unless a token turns out to be beyond the vocabulary.
        FloatingPointError: loss or gradients are not finite, on all processes; the last checkpoint is whole.
    """
    return run.start(flags, lambda mesh: _train(flags, mesh))


def _train(flags: PretrainFlags, mesh: Mesh) -> int:
    source = Path(flags.model_name_or_path)
    tokenizer = Tokenizer.from_pretrained(source)
    TokenizerFolder(source).require_end(tokenizer.eos_token_id)
    config = run.model_config(flags, mesh)
    positions = config.max_position_embeddings
    flags = flags.within(positions)
    files = [TokenFiles(prefix) for prefix in flags.prefixes()]
    for each in files:
        _require_tokenizer(each, tokenizer, source)
    train, valid, test = splits(flags, files, config)
    documents = sum(each.num_documents for each in files)
    flags.require(len(train) > 0, "split", f"one that leaves training some of {documents} documents")
    if flags.eval_iters is not None:
        valid = dataclasses.replace(valid, limit=flags.eval_iters * flags.per_device_eval_batch_size)
    kept, stale = without_chat_template(tokenizer.files), (HUGGING_FACE_TEMPLATE, TEMPLATE)
    about = describe_data(train, valid, test)
    return run.train(flags, mesh, next_token, train, valid, kept, stale, about, test)


def splits(flags: PretrainFlags, files: list[TokenFiles], config: LlamaConfig) -> tuple[TokenBatches, ...]:
    """Train, valid and test: each has its share of the documents of every pair of files."""
    shares = cast(list[float], shares_of(flags.split))  # the flags have refused others
    taken = [(each, split_documents(shares, each.num_documents)) for each in files]

    def of(number: int) -> TokenBatches:
        rows = (cast(int, flags.max_seq_length), config.vocab_size)  # `within` has filled it in
        return TokenBatches([TokenRows(each, ranges[number], *rows) for each, ranges in taken], config.pad_token_id)

    return of(0), of(1), of(2)


def _require_tokenizer(tokens: TokenFiles, tokenizer: Tokenizer, source: Path) -> None:
    """What other programs wrote does not say whose tokens they are: there each id is held against the vocabulary."""
    made_by = tokens.about.get("tokenizer_sha256")
    if made_by not in (None, checksum(tokenizer.files["tokenizer.json"])):
        raise ValueError(
            f"pretrain: --input_dir must hold tokens by the tokenizer of {source}, got {tokens.tokens_path}, which "
            "another tokenizer.json made. Write them again with tokenize_texts, or name their model's folder"
        )


def describe_data(train: TokenBatches, valid: TokenBatches, test: TokenBatches) -> Iterator[str]:
    for name, split in (("training", train), ("evaluation", valid), ("test", test)):
        tokens = sum(part.num_tokens for part in split.parts)
        documents = sum(len(part.documents) for part in split.parts)
        rows = f"rows of {split.parts[0].length}: {len(split)}"
        yield f"{name}: {tokens} tokens of {documents} documents, {rows}"


if __name__ == "__main__":
    keep_freed_memory()  # gradients are allocated anew in each step
    main(PretrainFlags, pretrain, PROGRAM)
