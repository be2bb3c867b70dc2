"""What an adapter is: rank, weight and targets, as PEFT's `adapter_config.json` says it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.llama2_13b.io.text import parse_object

CONFIG = "adapter_config.json"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OURS = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}
# No result depends on these.
WITHOUT_EFFECT = ("auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "megatron_core",
                  "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type")  # fmt: skip
# Values with which a field means what is done here. Of any other field: null, false or nothing in it.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # the others change the base's weights
}
MERGE_THERE = "peft's merge_and_unload() makes a model of it that needs no adapter"


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is: W becomes W + alpha / rank * B @ A, with A [rank, in_features] and B [out_features, rank].

    Args:
        rank: of the update.
        alpha: its weight, times rank.
        targets: the linear layers that have one, of TARGETS.
        dropout: the part of their input that is dropped while A and B are trained.

    Raises:
        ValueError: one of them cannot be; it is named as PEFT's file does.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(type(self.rank) is int and self.rank >= 1, "r", "an integer of at least 1", self.rank)
        is_number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        _require(is_number and 0 < self.alpha < float("inf"), "lora_alpha", "a number above 0", self.alpha)
        is_number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        _require(is_number and 0 <= self.dropout < 1, "lora_dropout", "in [0, 1)", self.dropout)
        unknown = [target for target in self.targets if target not in TARGETS]
        reason = "; the loss is fused with the head and trains no adapter on it" if "lm_head" in unknown else ""
        _require(not unknown, "target_modules", f"of {', '.join(TARGETS)}{reason}", ", ".join(map(str, unknown)))
        _require(bool(self.targets), "target_modules", f"at least one of {', '.join(TARGETS)}", "none")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AdapterConfig:
        """Of a folder that PEFT or `adapter_folder.save` wrote.

        Raises:
            FileNotFoundError, ValueError: a file is missing, or a field asks for another kind of adapter; it is named.
        """
        path = Path(folder) / CONFIG
        if not path.exists():
            raise FileNotFoundError(f"{path}: not found; an adapter's folder has it. peft's save_pretrained writes it")
        content = parse_object(path.read_bytes(), path)
        for name, value in content.items():
            if name not in OURS and name not in WITHOUT_EFFECT:
                _require_supported(path, name, value)
        if not isinstance(content.get("target_modules"), list):
            rule = f"target_modules must be a list, got {json.dumps(content.get('target_modules'))}"
            raise ValueError(f"{path}: {rule}. Write the names of the layers that have an adapter")
        values = {ours: content[theirs] for theirs, ours in OURS.items() if theirs in content}
        names = set(values.pop("targets"))
        targets = *(name for name in TARGETS if name in names), *sorted(map(str, names - set(TARGETS)))
        if missing := [theirs for theirs, ours in OURS.items() if ours in ("rank", "alpha") and ours not in values]:
            raise ValueError(f"{path}: {' and '.join(missing)} must be there, got none")
        try:
            return cls(**values, targets=targets)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def to_dict(self, base: str) -> dict[str, Any]:
        """The fields of `adapter_config.json`; PEFT fills in the others, which are off."""
        alpha = int(self.alpha) if self.alpha == int(self.alpha) else self.alpha  # an integer in PEFT
        return {
            "r": self.rank,
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "target_modules": list(self.targets),
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        }


def _require(condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {rule}, got {value}")


def _require_supported(path: Path, name: str, value: Any) -> None:
    allowed = SUPPORTED.get(name, ())
    is_off = value is None or (value in (False, {}, []) and type(value) is not int)
    if value in allowed and type(value) in map(type, allowed):
        return
    if name in SUPPORTED or not is_off:
        rule = " or ".join(json.dumps(each) for each in allowed) or "null, false or empty"
        raise ValueError(f"{path}: {name} must be {rule}, got {json.dumps(value)}; {MERGE_THERE}")
