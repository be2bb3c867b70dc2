"""The training loop: steps, evaluation and log, and when to save."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

import fusionkit as fk
from examples.llama2_13b.data.batches import Batches, filled
from examples.llama2_13b.data.order import Order
from examples.llama2_13b.data.packing import Batch
from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.remarks import Screen, beside_the_work, say
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel import trace
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import Forward
from examples.llama2_13b.train import loss_curve, metrics, non_finite, training_state
from examples.llama2_13b.train.checkpoints import Checkpoints
from examples.llama2_13b.train.interrupt import Interrupt
from examples.llama2_13b.train.loss import Loss, chunk_of
from examples.llama2_13b.train.optimizer import AdamW
from examples.llama2_13b.train.schedule import learning_rate
from examples.llama2_13b.train.slow_ranks import SlowRanks
from examples.llama2_13b.train.tensorboard import TensorBoard
from examples.llama2_13b.train.training_flags import TrainingFlags
from fusionkit.parallel import waited_seconds
from fusionkit.rehearsal import NOTE

EVALUATED_TOGETHER = 64  # micro-batches, so that not all of the data are in memory


@dataclass
class Trainer:
    """One run, from its first step or from a checkpoint's.

    Args:
        flags: of the run.
        mesh: this process's place among all.
        model, optimizer: changed in place.
        loss: what is minimised.
        train, evaluation: where the latter is empty nothing is evaluated.
        files: what every checkpoint holds beside the weights: tokenizer and chat template.
        step: steps done before.
        test: looked at once, at the end.
    """

    flags: TrainingFlags
    mesh: Mesh
    model: Llama
    optimizer: AdamW
    loss: Loss
    train: Batches
    evaluation: Batches
    files: Mapping[str, bytes]
    step: int = 0
    test: Batches | None = None
    test_loss: float | None = field(init=False, default=None)
    timeline: list[str] = field(init=False, default_factory=list)  # of the traced steps, in words, of each rank
    peak_memory: int = field(init=False, default=0)  # up to the last step, in bytes
    num_steps: int = field(init=False)

    def __post_init__(self) -> None:
        flags = self.flags
        self._checkpoints = Checkpoints(flags, self.mesh, self.model, self.optimizer, self.files)
        self.model.traced_by(self.mesh.trace)
        self._gradients = Gradients(self.mesh, self.model.parameters()).watch()
        self._order = Order(self.train, flags.rows_per_step(self.mesh.copies), flags.seed)
        self._slow_ranks = SlowRanks(self.mesh)
        self.num_steps = flags.max_steps if flags.max_steps > 0 else self._order.count(flags.num_train_epochs)
        flags.require_within(self.num_steps)
        is_done = self.step == self.num_steps and flags.resume_from_checkpoint == "auto"
        if self.step >= self.num_steps and not is_done:
            rule = f"above the checkpoint's step {self.step}"
            raise ValueError(f"{flags.COMMAND}: --max_steps must be {rule}, got {self.num_steps}")

    def run(self, peak_flops: float) -> int:
        """Train to the end, or to a signal, whose number is returned; 0 at the end, whatever came in the last step."""
        output = Path(self.flags.output_dir)
        with beside_the_work("peak_memory counts from the start of the process"):
            metrics.begin_peak_memory()
        with Interrupt() as interrupt:
            try:
                stopped = self._train(output, peak_flops, interrupt)
            except BaseException as error:
                with interrupt.held():
                    self._checkpoints.give_up(error)
                raise
            with interrupt.held():
                self._checkpoints.finish()
            self.mesh.any_process(False)  # nobody leaves while another writes
            if self.mesh.is_first:
                with beside_the_work("loss.png is not drawn"):
                    log = metrics.read_log(output / "log.jsonl")
                    loss_curve.draw(log, output / "loss.png", self._title(output))
        return stopped

    def _title(self, output: Path) -> str:
        title = f"{self.flags.COMMAND} {output.name}"
        return f"{title} ({NOTE})" if fk.is_rehearsal() else title

    def _train(self, output: Path, peak_flops: float, interrupt: Interrupt) -> int:
        """All steps. Work is saved before anything that can fail or take long: the model before the last evaluation."""
        log = metrics.Log(output / "log.jsonl", self.step) if self.mesh.is_first else None
        if self.step == self.num_steps and self.mesh.holds_weights:  # somebody died after the last checkpoint
            with interrupt.held():
                self._save_model(output)
        reports = self.mesh.is_first and self.flags.report_to == "tensorboard"
        board = TensorBoard(output / "tensorboard", self.step) if reports else None
        with self._progress() as progress, log or contextlib.nullcontext(), board or contextlib.nullcontext():
            for rows in progress:
                self._begin_trace()
                line = self._step(rows, peak_flops)
                self.step = line["step"]
                with interrupt.held():
                    self._checkpoints.finish(wait=False)
                self._end_trace(output)
                if self.step == self.num_steps and self.mesh.holds_weights:
                    with interrupt.held():
                        self._save_model(output)
                stopped = self._stops(interrupt)
                if self._evaluates() and not stopped:
                    line["eval_loss"] = self.evaluate(self.evaluation)
                    stopped = self._stops(interrupt)
                if self.test and self.step == self.num_steps:
                    line["test_loss"] = self.test_loss = self.evaluate(self.test)
                if log is not None:
                    log.write(line)
                if board is not None:
                    board.write(line)
                shown = {"loss": f"{line['loss']:.4f}", "tokens/s": f"{line['tokens_per_second']:.0f}"}
                progress.set_postfix(shown, refresh=False)
                if stopped or self._is_due(self.flags.save_steps):
                    if self.mesh.holds_state:
                        with interrupt.held():
                            self._save_checkpoint()
                    stopped = self._stops(interrupt) or stopped
                if stopped:
                    return stopped
        return 0

    def _begin_trace(self) -> None:
        """Also of a run that goes on in the middle of the steps asked for."""
        first, last = self.flags.traced
        if first <= self.step + 1 <= last and not self.mesh.trace.is_on:
            self.mesh.any_process(False)  # all begin at one time
            self.mesh.trace.begin()

    def _end_trace(self, output: Path) -> None:
        """The first process writes what all have seen."""
        if not self.mesh.trace.is_on or self.step < self.flags.traced[1]:
            return
        ranks = [trace.from_text(text) for text in self.mesh.texts_of_all(trace.to_text(self.mesh.trace.end()))]
        names = self.mesh.texts_of_all(f"rank {self.mesh.rank}, stage {self.mesh.pipeline.stage}")
        self.timeline = [trace.in_words(events, name) for events, name in zip(ranks, names, strict=True)]
        if self.mesh.is_first:
            with beside_the_work("trace.json is not written"):
                atomic.write_file(output / "trace.json", trace.chrome(ranks, names).encode())

    def _progress(self) -> tqdm:
        screen = Screen(sys.stderr)
        return tqdm(
            itertools.islice(self._order.steps(), self.step, self.num_steps),
            initial=self.step,
            total=self.num_steps,
            unit="step",
            file=screen,
            dynamic_ncols=True,
            disable=not self.mesh.is_first,
            mininterval=0.1 if screen.isatty() else 10.0,  # seconds; a log file keeps every line
        )

    def _stops(self, interrupt: Interrupt) -> int:
        """The signal to stop for, or 0: in the last step there is nothing left to stop.

        A signal reaches each process in its own time. They agree here, and each waits for the last.
        """
        asked = self.mesh.any_process(interrupt.signal != 0)
        return (interrupt.signal or signal.SIGTERM) if asked and self.step < self.num_steps else 0

    def _evaluates(self) -> bool:
        return len(self.evaluation) > 0 and (self._is_due(self.flags.eval_steps) or self.step == self.num_steps)

    def _is_due(self, interval: int | None) -> bool:
        return interval is not None and self.step % interval == 0

    def _step(self, rows: Sequence[Any], peak_flops: float) -> dict[str, Any]:
        """One update: the mean loss over every target of all micro-batches, whatever their sizes.

        Without a target loss and gradients are 0: a row of token files may have ends of documents alone.
        """
        started, waited = time.perf_counter(), waited_seconds()
        flags = self.flags
        self._seed()
        rate = learning_rate(
            self.step, flags.lr_scheduler_type, flags.learning_rate, flags.min_learning_rate, flags.warmup_steps,
            flags.decay_steps or self.num_steps,
        )  # fmt: skip
        batches = list(self._batches(self.train, rows, flags.per_device_train_batch_size))
        lengths = [length for batch in batches for length in batch.document_lengths]
        own_flops = metrics.model_flops(self.model.config, self.model.table, lengths)
        num_targets, num_tokens, flops = self.mesh.totals(
            sum(batch.num_targets for batch in batches), sum(lengths), own_flops
        )
        self._gradients.expect(len(batches), self._most(rows, flags.per_device_train_batch_size))
        num_targets = max(num_targets, 1.0)
        divisor = num_targets / self.mesh.copies  # averaged over the copies below
        forward, shapes, dtype = self._work(batches)
        forward = self._gradients.checked(forward)
        own_total = self.mesh.pipeline.train(forward, shapes, dtype, divisor, self.mesh.trace)
        self._gradients.reduce()
        (total,) = self.mesh.totals(own_total)
        self._update(rate, total, batches, divisor)
        seconds = time.perf_counter() - started
        for slow in self._slow_ranks.look(seconds - (waited_seconds() - waited)):
            if self.mesh.is_first:
                say(slow, sys.stderr)
        line: dict[str, Any] = {
            "step": self.step + 1,
            "loss": total / num_targets,
            "learning_rate": rate,
            "seconds": seconds,
            "tokens_per_second": num_tokens / seconds,
            "tokens_per_second_per_device": num_tokens / seconds / self.mesh.processes,
            "mfu": flops / seconds / (peak_flops * self.mesh.processes),
        }
        if fk.is_rehearsal():
            line["note"] = NOTE
        with beside_the_work("peak_memory is not measured"):
            line["peak_memory"] = self.peak_memory = metrics.peak_memory()
        return line

    def _seed(self) -> None:
        """The random numbers of this step."""
        paddle.seed(random_seed(self.flags.seed, self.step, self.mesh.copy, self.mesh.pipeline.stage))

    def _update(self, rate: float, total: float, batches: Sequence[Batch], divisor: float) -> None:
        """Change the parameters.

        Raises:
            FloatingPointError: the loss or the gradient's norm is not finite, so on all processes; nothing is changed.
        """
        try:
            if not math.isfinite(total):
                raise FloatingPointError(f"the loss must be finite, got {total}")
            self.optimizer.step(rate)
        except FloatingPointError as error:
            origin = non_finite.origin(self.model, self.mesh, self._work(batches), divisor, self._seed)
            advice = "Lower the learning rate, or look at the data of this step. The last checkpoint is whole"
            what = f"{self.flags.COMMAND}: step {self.step + 1}: {error}; first {origin}"
            raise FloatingPointError(f"{what}. {advice}") from None

    def _work(self, batches: Sequence[Batch]) -> tuple[Forward, list[list[int]], str]:
        """What a stage computes of these micro-batches; shapes and dtype of what it hands on."""
        shapes = [self.model.handed_on_shape(*batch.input_ids.shape) for batch in batches]
        return chunk_of(self.model, self.loss, batches), shapes, self.model.activation_dtype

    def evaluate(self, batches: Batches) -> float:
        """Mean loss over every target.

        Raises:
            ValueError: there is none.
        """
        own_total, own_targets = 0.0, 0
        self.model.eval()
        every = self._batches(batches, batches.rows(), self.flags.per_device_eval_batch_size)
        while together := list(itertools.islice(every, EVALUATED_TOGETHER)):
            own_total += self.mesh.pipeline.evaluate(*self._work(together))
            own_targets += sum(batch.num_targets for batch in together)
        self.model.train()
        total, num_targets = self.mesh.totals(own_total, own_targets)
        if num_targets == 0:
            rule = "at least one target, got none"
            raise ValueError(f"{self.flags.COMMAND}: data to evaluate must have {rule}. Leave them out, or give more")
        return total / num_targets

    def _batches(self, batches: Batches, rows: Sequence[Any], batch_size: int) -> Iterator[Batch]:
        """Of this copy's share of the rows. The ranks of a copy divide the tokens of a batch."""
        mesh = self.mesh
        own = batches.of(mesh.share(rows), batch_size, mesh.tensor.size)
        return filled(own, self._most(rows, batch_size), mesh.tensor.size) if mesh.sharding.divides_parameters else own

    def _most(self, rows: Sequence[Any], batch_size: int) -> int:
        """Micro-batches of the copy that has most."""
        return math.ceil(len(rows) / (batch_size * self.mesh.copies))

    def _save_checkpoint(self) -> None:
        if fk.is_rehearsal():
            return
        about = {"step": self.step, "num_steps": self.num_steps, "data": self.train.fingerprint()}
        state = about | {"flags": deciding(self.flags, self.mesh)}
        self._checkpoints.save(self.step, state)

    def _save_model(self, output: Path) -> None:
        if fk.is_rehearsal() or not self.flags.save_model:
            return
        if self.mesh.is_first:
            training_state.write_files(output, self.files)
        self.model.save_pretrained(output, self.flags.save_dtype)


def random_seed(seed: int, *place: int) -> int:
    """Of the random numbers of a step on one copy of the model and stage: resuming needs no state of the generator.

    The ranks that divide a layer draw alike.
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])


def deciding(flags: TrainingFlags, mesh: Mesh) -> dict[str, object]:
    """What a run that resumes must share: its flags, and the rows of a step, however they are shared out."""
    return flags.deciding() | {"rows_per_step": flags.rows_per_step(mesh.copies)}
