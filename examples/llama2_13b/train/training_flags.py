"""The flags that every training command has: all that the loop is told."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from examples.llama2_13b.io.flags import Checked, flag
from examples.llama2_13b.model.llama import DTYPES, GRANULARITIES
from examples.llama2_13b.parallel.sharding import STAGES
from examples.llama2_13b.train import tensorboard
from examples.llama2_13b.train.schedule import KINDS


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(Checked):
    """Named as Paddle's users know them. All are read; one that would have no effect is refused.

    A command's own flags derive from these, and name it in COMMAND: errors begin with it.
    """

    model_name_or_path: str = flag("folder of the model to start from")
    output_dir: str = flag("where the model, checkpoints, log.jsonl and loss.png go")
    per_device_train_batch_size: int = flag("rows of a micro-batch", 1)
    per_device_eval_batch_size: int = flag("rows of an evaluation batch", 1)
    gradient_accumulation_steps: int = flag("micro-batches of a step", 1)
    num_train_epochs: int = flag("passes over the data", 3)
    max_steps: int = flag("steps in all, instead of num_train_epochs; -1 for none", -1)
    learning_rate: float = flag("at its peak", 3e-5)
    min_learning_rate: float = flag("at the end of the decay", 0.0)
    lr_scheduler_type: str = flag(" | ".join(KINDS), "linear")
    decay_steps: int | None = flag("step from which min_learning_rate holds; the last if not given", None)
    warmup_steps: int = flag("steps in which the learning rate rises", 0)
    weight_decay: float = flag("of matrices, decoupled", 0.0)
    adam_beta1: float = flag("decay of the first moment", 0.9)
    adam_beta2: float = flag("decay of the second moment", 0.999)
    adam_epsilon: float = flag("added to the second moment's root", 1e-8)
    max_grad_norm: float = flag("limit of the gradient's global norm; 0 for none", 1.0)
    bf16: bool = flag("bfloat16 arithmetic; parameters and optimizer stay float32", False)
    save_dtype: str | None = flag(f"of the final model: {' | '.join(DTYPES)}; that of its source if not given", None)
    save_model: bool = flag("false: write no model at the end, for a run that only measures", True)
    recompute: bool = flag("compute activations again instead of keeping them", False)
    recompute_granularity: str = flag(
        "full | full_attn | core_attn: of a layer all, its attention, or that without its products", "full"
    )
    tensor_parallel_degree: int = flag("processes that share each layer of a copy of the model, neighbours", 1)
    pipeline_parallel_degree: int = flag("stages of each copy of the model, each with some of its layers", 1)
    virtual_pp_degree: int = flag("ranges of layers of each stage, which shorten the wait of stages for each other", 1)
    sharding: str = flag(f"{' | '.join(STAGES)}: copies of the model divide the optimizer's work; not, if empty", "")
    sharding_parallel_degree: int = flag("copies that do; -1 for all there are, if sharding is given", -1)
    sequence_parallel: bool = flag("such processes share the tokens between products too", True)
    seed: int = flag("of data order and random numbers", 42)
    device: str | None = flag("as paddle.set_device takes it; Paddle's choice if not given", None)
    eval_steps: int | None = flag("evaluate every so many steps, and at the end; only at the end if not given", None)
    save_steps: int | None = flag("checkpoint every so many steps; none but the final model if not given", None)
    async_save: bool = flag("write checkpoints while the next steps run, from copies in host memory", False)
    save_total_limit: int | None = flag("checkpoints kept, the newest; all if not given", None)
    resume_from_checkpoint: str | None = flag(
        'a checkpoint-<step> folder, or "last" of output_dir, or "auto": the last if there is one', None
    )
    trace_steps: str | None = flag("FIRST-LAST: steps whose timeline goes to trace.json, for chrome://tracing", None)
    report_to: str = flag("tensorboard | none: the log's figures in TensorBoard's format too", "none")
    overwrite_output_dir: bool = flag("remove the run that output_dir holds", False)

    def __post_init__(self) -> None:
        at_least_one = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
                        "num_train_epochs", "eval_steps", "save_steps", "save_total_limit",
                        "tensor_parallel_degree", "pipeline_parallel_degree", "virtual_pp_degree")  # fmt: skip
        for name in at_least_one:
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "at least 1")
        for name in ("min_learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "seed"):
            self.require(getattr(self, name) >= 0, name, "at least 0")
        self.require(self.seed < 2**32, "seed", f"below {2**32}")
        for name in ("adam_beta1", "adam_beta2"):
            self.require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        for name in ("learning_rate", "adam_epsilon"):
            self.require(getattr(self, name) > 0, name, "above 0")
        for name in ("learning_rate", "adam_epsilon", "weight_decay"):  # an endless max_grad_norm is none
            self.require(math.isfinite(getattr(self, name)), name, "finite")
        self.require(self.max_steps == -1 or self.max_steps >= 1, "max_steps", "at least 1, or -1")
        self.require(self.lr_scheduler_type in KINDS, "lr_scheduler_type", " or ".join(KINDS))
        if self.decay_steps is not None:
            self.require(self.decay_steps > self.warmup_steps, "decay_steps", f"above warmup_steps {self.warmup_steps}")
            self.require(self.lr_scheduler_type != "constant", "decay_steps", "left out with a constant rate")
        self.require(self.save_dtype in (None, *DTYPES), "save_dtype", " or ".join(DTYPES))
        self.require(self.save_model or self.save_dtype is None, "save_dtype", "left out without a model to save")
        named = " or ".join(GRANULARITIES)
        self.require(self.recompute_granularity in GRANULARITIES, "recompute_granularity", named)
        again = self.recompute or self.recompute_granularity == "full"
        self.require(again, "recompute_granularity", "left out without recompute")
        self.require(self.min_learning_rate <= self.learning_rate, "min_learning_rate", "at most learning_rate")
        falls = self.lr_scheduler_type != "constant" or self.min_learning_rate == 0
        self.require(falls, "min_learning_rate", "left out with a constant rate")
        interleaves = self.virtual_pp_degree == 1 or self.pipeline_parallel_degree > 1
        self.require(interleaves, "virtual_pp_degree", "1 where pipeline_parallel_degree is 1")
        self.require(self.sharding in ("", *STAGES), "sharding", f"{' or '.join(STAGES)}, or empty")
        degree = self.sharding_parallel_degree
        self.require(degree == -1 or degree >= 1, "sharding_parallel_degree", "at least 1, or -1")
        self.require(degree <= 1 or bool(self.sharding), "sharding", f"given with sharding_parallel_degree {degree}")
        self.require(degree != 1 or not self.sharding, "sharding", "empty with sharding_parallel_degree 1")
        divides = self.sequence_parallel or self.tensor_parallel_degree > 1
        self.require(divides, "sequence_parallel", "true where tensor_parallel_degree is 1")
        first, last = self.traced
        self.require(1 <= first <= last or self.trace_steps is None, "trace_steps", "FIRST-LAST, such as 3-5")
        self.require(self.report_to in ("none", "tensorboard"), "report_to", "tensorboard or none")
        here = self.report_to == "none" or tensorboard.is_installed()
        self.require(here, "report_to", f"none where {tensorboard.LIBRARY} is not installed")
        self.require(
            not (self.overwrite_output_dir and self.resume_from_checkpoint),
            "overwrite_output_dir",
            "false with resume_from_checkpoint",
        )

    def require_within(self, num_steps: int) -> None:
        """Refuse intervals that the run would never reach."""
        for name in ("save_steps", "eval_steps", "warmup_steps"):
            value = getattr(self, name)
            self.require(value is None or value <= num_steps, name, f"at most {num_steps}, the steps of this run")
        within = self.traced[1] <= num_steps
        self.require(within, "trace_steps", f"within the steps of this run, of which there are {num_steps}")

    @property
    def traced(self) -> tuple[int, int]:
        """The first and the last step whose timeline is written; 0, 0 for none."""
        found = re.fullmatch(r"(\d+)-(\d+)", self.trace_steps or "")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def rows_per_step(self, copies: int) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * copies

    @property
    def recomputed(self) -> str | None:
        """As `Llama` takes it."""
        return self.recompute_granularity if self.recompute else None

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.bf16 else "float32"

    def deciding(self) -> dict[str, object]:
        """The flags that a resumed run must share: they decide the samples' order and how a step learns from them.

        The number of steps is not among them: a run may be made longer.
        """
        names = ("seed", "bf16", "learning_rate", "min_learning_rate", "lr_scheduler_type", "decay_steps",
                 "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
                 "max_grad_norm")  # fmt: skip
        return {name: getattr(self, name) for name in names}
