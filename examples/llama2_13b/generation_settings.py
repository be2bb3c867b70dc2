"""How the next token is chosen: `generation_config.json` of a model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.llama2_13b.config import LlamaConfig

FILE = "generation_config.json"
STRATEGIES = ("sampling", "greedy_search")


@dataclass(frozen=True)
class GenerationSettings:
    """See `sampling.next_token` for what each does.

    Args:
        eos_token_ids: a row ends with the first of them.
        decode_strategy: "sampling", or "greedy_search" for the token with the highest score.
    """

    eos_token_ids: tuple[int, ...]
    decode_strategy: str = "sampling"
    top_p: float = 0.7
    temperature: float = 0.95
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        self._require(all(type(token) is int for token in self.eos_token_ids), "eos_token_ids", "integers")
        self._require(self.decode_strategy in STRATEGIES, "decode_strategy", " or ".join(STRATEGIES))
        self._require(0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._require(self.temperature > 0, "temperature", "above 0; --decode_strategy greedy_search is its limit")
        self._require(self.repetition_penalty > 0, "repetition_penalty", "above 0; 1 changes nothing")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"generation: {name} must be {rule}, got {getattr(self, name)}")

    @property
    def is_greedy(self) -> bool:
        return self.decode_strategy == "greedy_search"

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: LlamaConfig) -> GenerationSettings:
        """The folder's settings; the defaults above for what its file, if any, leaves open.

        Raises:
            ValueError: the file is not JSON, or a value is impossible.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return cls((config.eos_token_id,))
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**_arguments(fields, config))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, folder: Path) -> None:
        fields = {
            "do_sample": not self.is_greedy,
            "top_p": self.top_p,
            "temperature": self.temperature,
            "repetition_penalty": self.repetition_penalty,
            "eos_token_id": list(self.eos_token_ids),
        }
        (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _arguments(fields: dict[str, Any], config: LlamaConfig) -> dict[str, Any]:
    eos = fields.get("eos_token_id", config.eos_token_id)
    known = {name: fields[name] for name in ("top_p", "temperature", "repetition_penalty") if name in fields}
    strategy = STRATEGIES[0] if fields.get("do_sample", True) else STRATEGIES[1]
    return {"eos_token_ids": tuple(eos) if isinstance(eos, list) else (eos,), "decode_strategy": strategy, **known}
