"""A run of a training command: from a model folder or a checkpoint to the last step, or to a signal."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import paddle

import fusionkit as fk
from examples.llama2_13b.data.batches import Batches
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.io.remarks import beside_the_work, say
from examples.llama2_13b.io.reservation import reserved
from examples.llama2_13b.io.text import ENCODING
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import own_counts
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.sharding import STAGES
from examples.llama2_13b.train import memory, metrics, training_state
from examples.llama2_13b.train.loss import Loss
from examples.llama2_13b.train.optimizer import AdamW
from examples.llama2_13b.train.report import Report
from examples.llama2_13b.train.trainer import Trainer, deciding
from examples.llama2_13b.train.training_flags import TrainingFlags
from examples.llama2_13b.train.training_state import TrainingState
from fusionkit.rehearsal import NOTE


def start(flags: TrainingFlags, work: Callable[[Mesh], int]) -> int:
    """Work on the flags' device, with the other processes, as the only writer of the output folder."""
    _set_device(flags)
    mesh = Mesh.join(
        flags.COMMAND,
        tensor_parallel_degree=flags.tensor_parallel_degree,
        sharding_parallel_degree=flags.sharding_parallel_degree if flags.sharding else 1,
        sharding_stage=STAGES.index(flags.sharding) + 1 if flags.sharding else 1,
        pipeline_parallel_degree=flags.pipeline_parallel_degree,
        virtual_pp_degree=flags.virtual_pp_degree,
        sequence_parallel=flags.sequence_parallel,
    )
    folder = Path(flags.output_dir)
    # One process of a run writes, and so has the folder for all.
    with reserved(folder, f"{flags.COMMAND}: --output_dir") if mesh.is_first else nullcontext(), telling_who(mesh):
        mesh.any_process(False)  # what others find in the folder is no other run's any more
        return work(mesh)


@contextmanager
def telling_who(mesh: Mesh) -> Iterator[None]:
    """An error counts the ranks of one group: say which processes they are, where a trace is shown."""
    try:
        yield
    except Exception as error:  # in a backward pass Paddle 3.3.1 makes an OSError or a SystemError of any other
        if mesh.processes > 1:
            error.add_note(mesh.whereabouts("".join(traceback.format_exception(error))))
        raise


def model_config(flags: TrainingFlags, mesh: Mesh) -> LlamaConfig:
    """The model's sizes, before data and weights are read.

    Raises:
        ValueError: they do not divide over the processes; the nearest layout that does is named.
    """
    config = config_of(flags.model_name_or_path)
    own_counts(config, mesh.tensor)
    mesh.pipeline.layers(config.num_hidden_layers)
    return config


# (flags, mesh, the checkpoint to resume or None) -> the model to train.
OpenModel = Callable[[Any, Mesh, Path | None], Llama]


def open_model(flags: TrainingFlags, mesh: Mesh, checkpoint: Path | None) -> Llama:
    """All of it is trained, so all of it is in a checkpoint."""
    folder = checkpoint or Path(flags.model_name_or_path)
    return Llama.from_pretrained(folder, flags.dtype, flags.recomputed, mesh.tensor, mesh.pipeline, mesh.sharding)


def train(
    flags: TrainingFlags,
    mesh: Mesh,
    loss: Loss,
    batches: Batches,
    evaluation: Batches,
    files: Mapping[str, bytes],
    stale: Iterable[str] = (),
    about: Iterable[str] = (),
    test: Batches | None = None,
    open_model: OpenModel = open_model,
) -> int:
    """Run to the end and return 0, or to a signal and return 128 + its number.

    Args:
        flags, mesh: of the run.
        loss: what is minimised.
        batches, evaluation: what is learned, and what the model is evaluated on; the latter may be empty.
        files: what every checkpoint holds beside the weights.
        stale: files in the output folder that are not this run's, and go with an overwritten one.
        about: lines on the data, said before the first step.
        test: what the model is evaluated on once, at the end.
        open_model: the model to train, from the flags or from a checkpoint.
    """
    evaluates = flags.eval_steps is None or len(evaluation) > 0
    flags.require(evaluates, "eval_steps", "left out without evaluation samples")
    checkpoint = checkpoint_to_resume(flags)
    state = training_state.load(checkpoint) if checkpoint else None
    if checkpoint and state:
        training_state.require_same(state, batches.fingerprint(), deciding(flags, mesh), checkpoint, flags.COMMAND)
    model = open_model(flags, mesh, checkpoint)
    optimizer = AdamW(
        model, mesh, flags.adam_beta1, flags.adam_beta2, flags.adam_epsilon, flags.weight_decay, flags.max_grad_norm
    )
    if checkpoint and state:
        model.stored_dtypes = state.stored_dtypes
        optimizer.load(checkpoint, state.optimizer)
        training_state.verify(checkpoint, state, mesh.everyone)  # what was read a moment ago is still in memory
    done = state.step if state else 0
    trainer = Trainer(flags, mesh, model, optimizer, loss, batches, evaluation, files, done, test)
    predicted = predicted_memory(trainer)
    peak = metrics.measure_peak_flops(flags.dtype)  # the first fused op: a wrong setting shows before a run is removed
    mesh.any_process(False)  # all have looked at the output folder before the first changes it
    if mesh.is_first:
        _prepare_output(flags, stale)
        memory_lines = memory.describe(predicted, mesh.pipeline.stages)
        for line in (*about, *_describe(trainer, peak), *_other_decay(trainer, state), *memory_lines):
            say(line)
    return _run(trainer, peak, predicted, done)


def predicted_memory(trainer: Trainer) -> list[memory.Memory]:
    """Of every rank; empty on all processes but the first."""
    if trainer.mesh.is_first:
        with beside_the_work("the memory of a rank is not predicted"):
            return memory.predict(trainer.model, trainer.mesh, step_of(trainer))
    return []


def step_of(trainer: Trainer) -> memory.Step:
    """The largest that the data make."""
    flags = trainer.flags
    return memory.Step(flags.per_device_train_batch_size, trainer.train.longest, flags.gradient_accumulation_steps)


def _run(trainer: Trainer, peak_flops: float, predicted: list[memory.Memory], done: int) -> int:
    try:
        interrupted = trainer.run(peak_flops)
    except FloatingPointError as error:  # on all processes
        _report(trainer, f"{error}.", predicted, done)
        raise
    return _ended(trainer, interrupted, predicted, done)


def _ended(trainer: Trainer, interrupted: int, predicted: list[memory.Memory], done: int) -> int:
    stopped = f"Stopped by signal {interrupted} after step" if interrupted else "Ended with step"
    _report(trainer, f"{stopped} {trainer.step} of {trainer.num_steps}.", predicted, done)
    if trainer.mesh.is_first and interrupted:
        say(f"stopped after step {trainer.step}. Go on with the same flags and --resume_from_checkpoint last")
    elif trainer.mesh.is_first:
        if trainer.test_loss is not None:
            say(f"test loss: {trainer.test_loss:.4f}")
        say(f"{_written(trainer.flags)}: {trainer.flags.output_dir}")
    return 128 + interrupted if interrupted else 0


def _written(flags: TrainingFlags) -> str:
    if fk.is_rehearsal():
        return f"{NOTE}, so no model was written; log.jsonl"
    return "model and log.jsonl" if flags.save_model else "log.jsonl, and no model as --save_model is false"


def _report(trainer: Trainer, ending: str, predicted: list[memory.Memory], done: int) -> None:
    """Write the report, and say the timeline and the memory that was measured. All processes call this."""
    measured = [peak for (peak,) in trainer.mesh.gathered([trainer.peak_memory])]
    if not trainer.mesh.is_first:
        return
    path = Path(trainer.flags.output_dir) / "report.html"
    ending = f"{ending} {NOTE.capitalize()}." if fk.is_rehearsal() else ending
    with beside_the_work("report.html is not written"):
        if trainer.step > done or not _tells(path, ending):  # a run that did no step has measured nothing
            _page(trainer, ending, predicted, measured).write(path)
    for line in (*trainer.timeline, *memory.compare(predicted, measured)):
        say(line)


def _tells(path: Path, ending: str) -> bool:
    return path.exists() and ending in path.read_text(encoding=ENCODING)


def _page(trainer: Trainer, ending: str, predicted: list[memory.Memory], measured: list[float]) -> Report:
    flags = trainer.flags
    folder = Path(flags.output_dir)
    return Report(
        title=f"{flags.COMMAND} {folder.name}",
        ending=ending,
        log=metrics.read_log(folder / "log.jsonl"),
        layout=dataclasses.asdict(trainer.mesh.degrees),
        settings=dataclasses.asdict(flags),
        predicted=predicted,
        measured=measured,
        measured_of=memory.measured_of(),
        timeline=trainer.timeline,
    )


def _describe(trainer: Trainer, peak: float) -> list[str]:
    mesh, dtype = trainer.mesh, trainer.flags.dtype
    processes = f" on {mesh.processes} processes" if mesh.processes > 1 else ""
    if mesh.pipeline.stages > 1:
        processes += f", {mesh.pipeline.stages} stages to a copy"
    if mesh.tensor.size > 1:
        tokens_too = " and the sequence" if mesh.tensor.divides_tokens else ""
        processes += f", {mesh.tensor.size} of which divide the layers{tokens_too} of each copy"
    if mesh.sharding.size > 1:
        layers_too = " and the matrices" if mesh.sharding.divides_parameters else ""
        processes += f", {mesh.sharding.size} of which divide the optimizer's work{layers_too}"
    return [
        *([NOTE] if fk.is_rehearsal() else []),
        f"steps: {trainer.step} to {trainer.num_steps}, {dtype} arithmetic{processes}",
        f"peak: fused_linear {dtype} {peak / 1e9:.0f} GFLOP/s, measured now; MFU is relative to it",
    ]


def _other_decay(trainer: Trainer, state: TrainingState | None) -> list[str]:
    """The rate falls to the end of the run, wherever that is: another number of steps changes every rate to come."""
    flags, before = trainer.flags, None if state is None else state.num_steps
    ends_with_run = flags.decay_steps is None and flags.lr_scheduler_type != "constant"
    if before in (None, trainer.num_steps) or not ends_with_run:
        return []
    now = f"the learning rate falls up to step {trainer.num_steps} now, up to step {before} before"
    return [f"{now}. A run that is to be made longer begins with --decay_steps"]


def _set_device(flags: TrainingFlags) -> None:
    if flags.device is None:
        return
    try:
        paddle.set_device(flags.device)
    except ValueError as error:
        rule = "one that Paddle has here"
        raise ValueError(f"{flags.COMMAND}: --device must be {rule}, got {flags.device!r}; {error}") from None


def checkpoint_to_resume(flags: TrainingFlags) -> Path | None:
    """The folder to go on from; None for a new run.

    Raises:
        ValueError: output_dir holds another run or a model already, later steps, or no checkpoint to resume.
    """
    output, given = Path(flags.output_dir), flags.resume_from_checkpoint
    saved = training_state.checkpoints(output)
    flags.require(bool(saved) or given != "last", "output_dir", "a folder with a checkpoint to resume from")
    if saved and given in ("last", "auto"):
        return saved[-1]
    start = None if given in (None, "auto") else Path(given)
    if start and start.resolve().parent == output.resolve():
        last = not saved or start.resolve() == saved[-1].resolve()
        flags.require(last, "resume_from_checkpoint", "the last in output_dir, whose steps it would mix with its own")
        return start
    lost = () if given == "auto" else ("log.jsonl",)  # of a run that ended before its first checkpoint
    used = saved or any((output / name).exists() for name in (*lost, "config.json", "adapter_config.json"))
    if used and not flags.overwrite_output_dir:
        raise ValueError(
            f"{flags.COMMAND}: --output_dir must hold no run or model yet, got {flags.output_dir}. Name another "
            "folder, go on with --resume_from_checkpoint last, or give it up with --overwrite_output_dir"
        )
    return start


def _prepare_output(flags: TrainingFlags, stale: Iterable[str]) -> None:
    output = Path(flags.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    training_state.remove_unfinished(output)
    if flags.overwrite_output_dir:
        for checkpoint in training_state.checkpoints(output):
            shutil.rmtree(checkpoint)
        shutil.rmtree(output / "tensorboard", ignore_errors=True)
        for name in ("log.jsonl", "report.html", "report.json", "trace.json", *stale):
            (output / name).unlink(missing_ok=True)
