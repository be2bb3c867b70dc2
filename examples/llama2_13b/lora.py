"""Fine-tuning of an adapter: the model stays as it is, and only the matrices of LoRA beside it are trained.

    python -m examples.llama2_13b.lora FLAGS.json --output_dir output/lora

The output is a folder of PEFT; `merge` makes a model folder of it. Data, signals and resuming are as in `sft`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.folders.adapter_config import TARGETS, AdapterConfig
from examples.llama2_13b.folders.model_folder import weights_of
from examples.llama2_13b.folders.quantization import GROUP_SIZE_HELP, SYMMETRIC_HELP, Format
from examples.llama2_13b.io.flags import flag, main
from examples.llama2_13b.model import packed_base
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.sharding import STAGES
from examples.llama2_13b.sft import SftFlags, fine_tune
from examples.llama2_13b.train import run
from fusionkit import is_rehearsal, keep_freed_memory
from fusionkit.dtypes import QUANTIZED
from fusionkit.quantized_weight import GROUP_SIZES
from fusionkit.rehearsal import NOTE

PROGRAM = "examples.llama2_13b.lora"
RANK = 8
GROUP_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class LoraFlags(SftFlags):
    """The flags of fine-tuning, and what the adapter is."""

    COMMAND = "lora"

    lora_rank: int | None = flag(f"of the adapter's matrices; that of lora_path or {RANK} if not given", None)
    lora_alpha: float | None = flag("weight of the update times rank; that of lora_path or 2 x rank if not given", None)
    lora_dropout: float | None = flag("part of its input dropped; that of lora_path or 0 if not given", None)
    target_modules: str | None = flag(
        f"layers with an adapter, between commas; those of lora_path or {','.join(TARGETS)} if not given", None
    )
    lora_path: str | None = flag("folder of an adapter to go on from", None)
    weight_dtype: str | None = flag(
        "int8 | int4: the frozen matrices are rounded to it, or keep codes that they have; float32 if not given", None
    )
    group_size: int = flag(GROUP_SIZE_HELP, GROUP_SIZE)
    symmetric: bool = flag(SYMMETRIC_HELP, False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_packs()
        self.require(self.lora_rank is None or self.lora_rank >= 1, "lora_rank", "at least 1")

    @cached_property
    def adapter(self) -> AdapterConfig:
        """What the flags ask for.

        Raises:
            FileNotFoundError, ValueError: it cannot be, or is not what `lora_path` holds.
        """
        given: dict[str, Any] = {"rank": self.lora_rank, "alpha": self.lora_alpha, "dropout": self.lora_dropout}
        given["targets"] = None if self.target_modules is None else _in_order(self.target_modules)
        given = {name: value for name, value in given.items() if value is not None}
        if self.lora_path is None:
            rank = given.get("rank", RANK)
            return self._checked(AdapterConfig, **{"rank": rank, "alpha": 2.0 * rank, **given})
        start = AdapterConfig.from_pretrained(self.lora_path)
        for name, flag_name in (("rank", "lora_rank"), ("alpha", "lora_alpha"), ("targets", "target_modules")):
            held = getattr(start, name)
            same = given.get(name, held) == held
            shown = ",".join(held) if name == "targets" else held
            self.require(same, flag_name, f"{shown} as in {self.lora_path}, or left out")
        return self._checked(dataclasses.replace, start, **given)

    def _require_packs(self) -> None:
        """Packs of whole matrices: nothing divides them."""
        if self.weight_dtype is None:
            self.require(self.group_size == GROUP_SIZE, "group_size", "left out without weight_dtype")
            return self.require(not self.symmetric, "symmetric", "left out without weight_dtype")
        self.require(self.weight_dtype in QUANTIZED, "weight_dtype", " or ".join(QUANTIZED))
        sizes = (*GROUP_SIZES, 0)
        self.require(self.group_size in sizes, "group_size", " or ".join(map(str, sizes)))
        instead = "as a pack is not divided; pipeline_parallel_degree divides the layers, and copies the rows"
        self.require(self.tensor_parallel_degree == 1, "tensor_parallel_degree", f"1 with weight_dtype, {instead}")
        rule = "stage1 or stage2 with weight_dtype, as a pack is not divided"
        self.require(self.sharding != STAGES[-1], "sharding", rule)

    @property
    def packs(self) -> Format | None:
        if self.weight_dtype is None:
            return None
        return Format(self.weight_dtype, self.group_size or None, self.symmetric)

    def _checked(self, make: Any, *args: Any, **values: Any) -> AdapterConfig:
        try:
            config: AdapterConfig = make(*args, **values)
        except ValueError as error:
            raise ValueError(f"{self.COMMAND}: the adapter's {error}") from None
        return config

    def deciding(self) -> dict[str, object]:
        adapter = self.adapter
        return super().deciding() | {
            "lora_rank": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "target_modules": ",".join(adapter.targets),
            "model_name_or_path": f"a model with digest {self._base_digest}",
            "weight_dtype": self.packs and str(self.packs),
        }

    @cached_property
    def _base_digest(self) -> str:
        """Checkpoints hold the adapter alone: over other weights it would be another run."""
        return NOTE if is_rehearsal() else weights_of(self.model_name_or_path).digest()


def _in_order(names: str) -> tuple[str, ...]:
    given = [name.strip() for name in names.split(",") if name.strip()]
    return *(name for name in TARGETS if name in given), *(name for name in given if name not in TARGETS)


def lora(flags: LoraFlags) -> int:
    """Run to the end and return 0, or to a signal and return 128 + its number.

    Raises:
        ValueError, OSError, FloatingPointError: as `sft`; and the adapter, or what `lora_path` holds, is not covered.
    """
    holds_model = (Path(flags.output_dir) / "config.json").exists()
    flags.require(not holds_model, "output_dir", "a folder without a model, which other programs would read instead")
    flags.adapter  # noqa: B018  a wrong one is refused before anything is loaded
    return run.start(flags, lambda mesh: _fine_tune(flags, mesh))


def _fine_tune(flags: LoraFlags, mesh: Mesh) -> int:
    """On the flags' device, which has been set."""
    why_not = flags.packs and packed_base.why_not(flags.packs, flags.dtype)
    if why_not:
        advice = "Leave --weight_dtype out, or train on the CPU with --device cpu"
        raise ValueError(f"lora: --weight_dtype must be left out here, got {flags.weight_dtype}; {why_not}\n{advice}")
    return fine_tune(flags, mesh, open_model)


def open_model(flags: LoraFlags, mesh: Mesh, checkpoint: Path | None) -> LoraLlama:
    """The frozen model with a new adapter, with that of `lora_path`, or with that of a checkpoint of this run."""
    base = flags.model_name_or_path
    how: dict[str, Any] = {"dtype": flags.dtype, "recompute": flags.recomputed}
    how |= {"packs": flags.packs, "shards": mesh.tensor, "pipeline": mesh.pipeline, "sharding": mesh.sharding}
    source = checkpoint or flags.lora_path
    if source is None:
        return LoraLlama.with_new_adapter(base, flags.adapter, flags.seed, **how)
    return LoraLlama.with_adapter(base, source, flags.adapter, **how)


if __name__ == "__main__":
    keep_freed_memory()  # gradients are allocated anew in each step
    main(LoraFlags, lora, PROGRAM)
