"""Supervised fine-tuning of a Llama on one device, or on several: copies of the model, each on one or more.

    python -m examples.llama2_13b.sft FLAGS.json --output_dir output/sft

Ctrl-C or SIGTERM saves a checkpoint after the running step; `--resume_from_checkpoint last` goes on from it.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

import paddle

from examples.llama2_13b.data.chat_template import TEMPLATE, ChatTemplate
from examples.llama2_13b.data.samples import Sample, describe_dropped, encode, read_examples, split_files
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import HUGGING_FACE_TEMPLATE, TokenizerFolder, without_chat_template
from examples.llama2_13b.io import flags
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.io.reservation import reserved
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.config import LlamaConfig
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from examples.llama2_13b.train import metrics, training_state
from examples.llama2_13b.train.optimizer import AdamW
from examples.llama2_13b.train.sft_flags import SftFlags
from examples.llama2_13b.train.trainer import Trainer, deciding
from fusionkit import keep_freed_memory

PROGRAM = "examples.llama2_13b.sft"


def sft(flags: SftFlags) -> int:
    """Run to the end and return 0, or to a signal and return 128 + its number.

    Raises:
        ValueError, OSError: something in flags, data, model or checkpoint is wrong; nothing was trained or removed yet.
        FloatingPointError: the gradients are no longer finite; the last checkpoint is whole.
    """
    set_device(flags)
    mesh = Mesh.join(flags.tensor_parallel_degree, flags.sequence_parallel)
    # One process of a run writes, and so has the folder for all.
    with reserved(Path(flags.output_dir), "sft: --output_dir") if mesh.is_first else nullcontext():
        return _train(flags, mesh)


def _train(flags: SftFlags, mesh: Mesh) -> int:
    tokenizer = Tokenizer.from_pretrained(flags.model_name_or_path)
    TokenizerFolder(flags.model_name_or_path).require_end(tokenizer.eos_token_id)
    flags = flags.within(LlamaConfig.from_json(Path(flags.model_name_or_path) / "config.json").max_position_embeddings)
    template = ChatTemplate.from_json(flags.chat_template) if flags.chat_template else None
    train, evaluation = (read_samples(flags, split, tokenizer, template) for split in ("train", "dev"))
    flags.require(bool(train), "dataset_name_or_path", "a folder with at least one training sample")
    flags.require(flags.eval_steps is None or bool(evaluation), "eval_steps", "left out without evaluation samples")
    start = checkpoint_to_resume(flags)
    state = training_state.load(start) if start else None
    if start and state:
        training_state.require_same(state, training_state.fingerprint(train), deciding(flags, mesh), start)
    model = load_model(flags, start or Path(flags.model_name_or_path), mesh.tensor)
    optimizer = AdamW(
        model, flags.adam_beta1, flags.adam_beta2, flags.adam_epsilon, flags.weight_decay, flags.max_grad_norm
    )
    if start and state:
        model.stored_dtypes = state.stored_dtypes
        optimizer.load(start, state.optimizer)
    files = without_chat_template(tokenizer.files) | (
        {TEMPLATE: Path(flags.chat_template).read_bytes()} if flags.chat_template else {}
    )
    trainer = Trainer(
        flags, mesh, model, optimizer, train, evaluation, tokenizer.pad_token_id, files, state.step if state else 0
    )
    peak = metrics.measure_peak_flops(flags.dtype)  # the first fused op: a wrong setting shows before a run is removed
    mesh.any_process(False)  # all have looked at the output folder before the first changes it
    if mesh.is_first:
        prepare_output(flags)
        describe_data(flags, tokenizer, trainer)
        describe(flags, trainer, peak)
    interrupted = trainer.run(peak)
    if not mesh.is_first:
        return 128 + interrupted if interrupted else 0
    if interrupted:
        say(f"stopped after step {trainer.step}. Go on with the same flags and --resume_from_checkpoint last")
        return 128 + interrupted
    say(f"model and log.jsonl: {flags.output_dir}")
    return 0


def describe_data(flags: SftFlags, tokenizer: Tokenizer, trainer: Trainer) -> None:
    """The samples, what was cut to make them fit, and chat templates that were not followed."""
    tokens = sum(map(len, trainer.train))
    say(f"training samples: {len(trainer.train)} of {tokens} tokens; evaluation samples: {len(trainer.evaluation)}")
    lengths = f"--src_length {flags.src_length}, --max_length {flags.max_length}"
    for name, samples in (("training", trainer.train), ("evaluation", trainer.evaluation)):
        say(f"{name} samples cut: {describe_dropped(samples)} ({lengths})")
    own = not flags.chat_template and (Path(flags.model_name_or_path) / TEMPLATE).exists()
    if ignored := [*tokenizer.chat_templates, *([TEMPLATE] if own else [])]:
        advice = "--chat_template names the file that training follows"
        say(f"chat template: {' and '.join(ignored)} of {flags.model_name_or_path} not followed or copied; {advice}")


def describe(flags: SftFlags, trainer: Trainer, peak: float) -> None:
    mesh = trainer.mesh
    processes = f" on {mesh.processes} processes" if mesh.processes > 1 else ""
    if mesh.tensor.size > 1:
        tokens_too = " and the sequence" if mesh.tensor.divides_tokens else ""
        processes += f", {mesh.tensor.size} of which divide the layers{tokens_too} of each copy"
    say(f"steps: {trainer.step} to {trainer.num_steps}, {flags.dtype} arithmetic{processes}")
    say(f"peak: fused_linear {flags.dtype} {peak / 1e9:.0f} GFLOP/s, measured now; MFU is relative to it")


def set_device(flags: SftFlags) -> None:
    if flags.device is None:
        return
    try:
        paddle.set_device(flags.device)
    except ValueError as error:
        raise ValueError(f"sft: --device must be one that Paddle has here, got {flags.device!r}; {error}") from None


def read_samples(flags: SftFlags, split: str, tokenizer: Tokenizer, template: ChatTemplate | None) -> list[Sample]:
    examples = read_examples(split_files(flags.dataset_name_or_path, split))
    return [encode(example, tokenizer, flags.src_length, flags.max_length, template) for example in examples]


def load_model(flags: SftFlags, folder: Path, shards: TensorParallel) -> Llama:
    positions = LlamaConfig.from_json(folder / "config.json").max_position_embeddings
    flags.require(flags.max_length <= positions, "max_length", f"at most {positions}, the model's positions")
    return Llama.from_pretrained(folder, flags.dtype, flags.recompute, shards)


def checkpoint_to_resume(flags: SftFlags) -> Path | None:
    """The folder to go on from; None for a new run.

    Raises:
        ValueError: output_dir holds another run or a model already, later steps, or no checkpoint to resume.
    """
    output = Path(flags.output_dir)
    saved = training_state.checkpoints(output)
    if flags.resume_from_checkpoint == "last":
        flags.require(bool(saved), "output_dir", "a folder with a checkpoint to resume from")
        return saved[-1]
    start = None if flags.resume_from_checkpoint is None else Path(flags.resume_from_checkpoint)
    if start and start.resolve().parent == output.resolve():
        last = not saved or start.resolve() == saved[-1].resolve()
        flags.require(last, "resume_from_checkpoint", "the last in output_dir, whose steps it would mix with its own")
        return start
    used = saved or any((output / name).exists() for name in ("log.jsonl", "config.json"))
    if used and not flags.overwrite_output_dir:
        raise ValueError(
            f"sft: --output_dir must hold no run or model yet, got {flags.output_dir}. Name another folder, go on with "
            "--resume_from_checkpoint last, or give it up with --overwrite_output_dir"
        )
    return start


def prepare_output(flags: SftFlags) -> None:
    output = Path(flags.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if flags.overwrite_output_dir:
        for checkpoint in training_state.checkpoints(output):
            shutil.rmtree(checkpoint)
        (output / "log.jsonl").unlink(missing_ok=True)
        (output / HUGGING_FACE_TEMPLATE).unlink(missing_ok=True)
        if not flags.chat_template:
            (output / TEMPLATE).unlink(missing_ok=True)  # export would take it for this run's


if __name__ == "__main__":
    keep_freed_memory()  # gradients are allocated anew in each step
    flags.main(SftFlags, sft, PROGRAM)
