"""How the next token is chosen: `generation_config.json` of a model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.request import MAX_PENALTY, SamplingSettings, is_number
from examples.llama2_13b.io.text import ENCODING

FILE = "generation_config.json"
STRATEGIES = ("sampling", "greedy_search")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
SAMPLED = ("top_p", "temperature", *PENALTIES, "top_k", "min_p")
NUMBERS = (*SAMPLED, "max_new_tokens", "max_length")
READ = (*NUMBERS, "do_sample", "decode_strategy", "eos_token_id", "stop_strings")
# Fields that choose no token: who wrote the file, other tokens' ids, caches and what transformers returns.
SILENT = (
    "_from_model_config", "transformers_version", "paddlenlp_version", "bos_token_id", "pad_token_id",
    "decoder_start_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len",
    "return_legacy_cache", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "low_memory", "compile_config", "disable_compile", "prefill_chunk_size",
    "continuous_batching_config",
)  # fmt: skip
# Values with which other fields change nothing; so do null and false.
NEUTRAL = {
    "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "typical_p": 1, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "encoder_repetition_penalty": 1, "length_penalty": 1, "diversity_penalty": 0, "penalty_alpha": 0,
    "guidance_scale": 1, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0,
}  # fmt: skip


@dataclass(frozen=True)
class GenerationSettings:
    """See `SamplingSettings` for what each does.

    Args:
        eos_token_ids: a row ends with the first of them.
        decode_strategy: "sampling", or "greedy_search" for the token with the highest score.
        max_new_tokens: of an answer at most; None if the model does not say.
        max_length: tokens of prompt and answer together at most, where nothing says max_new_tokens.
        stop_strings: the answer's text ends before the first of them.
        others: the fields of the file that have no effect here.
    """

    eos_token_ids: tuple[int, ...]
    decode_strategy: str = "sampling"
    top_p: float = 0.7
    temperature: float = 0.95
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: tuple[str, ...] = ()
    others: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._require(all(type(token) is int for token in self.eos_token_ids), "eos_token_ids", "integers")
        self._require(self.decode_strategy in STRATEGIES, "decode_strategy", " or ".join(STRATEGIES))
        self._require_numbers()
        # Greedy search uses neither of the first two; 0 is how folders write that.
        unused = self.is_greedy
        self._require(0 < self.top_p <= 1 or (unused and self.top_p == 0), "top_p", "in (0, 1]")
        rule = "above 0; --decode_strategy greedy_search is its limit"
        self._require(self.temperature > 0 or (unused and self.temperature == 0), "temperature", rule)
        self._require(self.repetition_penalty > 0, "repetition_penalty", "above 0; 1 changes nothing")
        for name in ("presence_penalty", "frequency_penalty"):
            rule = f"in [-{MAX_PENALTY:g}, {MAX_PENALTY:g}]; 0 changes nothing"
            self._require(abs(getattr(self, name)) <= MAX_PENALTY, name, rule)
        stops = all(isinstance(text, str) and text for text in self.stop_strings)
        self._require(stops, "stop_strings", "texts that are not empty")
        self._require(self.top_k >= 0, "top_k", "at least 0; 0 keeps every token")
        self._require(0 <= self.min_p <= 1, "min_p", "in [0, 1]; 0 keeps every token")
        for name in ("max_new_tokens", "max_length"):
            value = getattr(self, name)
            self._require(value is None or value >= 1, name, "at least 1")

    def _require_numbers(self) -> None:
        for name in NUMBERS:
            value = getattr(self, name)
            is_count = name == "top_k" or name.startswith("max_")
            right = type(value) is int or (type(value) is float and not is_count) or (value is None and "max_" in name)
            self._require(right, name, "an integer" if is_count else "a number")
            self._require(value is None or is_number(value), name, "finite")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise ValueError(f"generation: {name} must be {rule}, got {getattr(self, name)}")

    @property
    def is_greedy(self) -> bool:
        return self.decode_strategy == "greedy_search"

    def sampling(self, seed: int) -> SamplingSettings:
        """How a request with this seed chooses its tokens."""
        if self.is_greedy:
            return SamplingSettings(temperature=0, **{name: getattr(self, name) for name in PENALTIES})
        same = {name: getattr(self, name) for name in SAMPLED}
        return SamplingSettings(**same, seed=seed)

    @property
    def without_effect(self) -> str:
        """A line that names the fields of the file which ask for what is not done here; empty if there are none."""
        named = [f"{name} {json.dumps(value)}" for name, value in self.others.items() if not _is_neutral(name, value)]
        return f"{FILE}: without effect here: {', '.join(named)}" if named else ""

    @classmethod
    def from_pretrained(cls, folder: str | Path, config: LlamaConfig) -> GenerationSettings:
        """The folder's settings; the defaults above for what its file, if any, leaves open.

        Raises:
            ValueError: the file is not JSON, or a value is impossible.
        """
        path = Path(folder) / FILE
        if not path.exists():
            return cls(config.eos_token_ids)
        try:
            fields = json.loads(path.read_text(encoding=ENCODING))
            return cls(**_arguments(fields, config))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, folder: Path) -> None:
        numbers = {name: getattr(self, name) for name in NUMBERS}
        fields = {
            **self.others,
            "do_sample": not self.is_greedy,
            **{name: value for name, value in numbers.items() if value is not None},
            **({"stop_strings": list(self.stop_strings)} if self.stop_strings else {}),
            "eos_token_id": list(self.eos_token_ids),
        }
        (folder / FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _is_neutral(name: str, value: Any) -> bool:
    return name in SILENT or value is None or value is False or (name in NEUTRAL and value == NEUTRAL[name])


def _arguments(fields: dict[str, Any], config: LlamaConfig) -> dict[str, Any]:
    eos = fields.get("eos_token_id", list(config.eos_token_ids))
    eos = tuple(eos) if isinstance(eos, list) else (eos,)
    if unknown := [token for token in eos if type(token) is int and not 0 <= token < config.vocab_size]:
        raise ValueError(f"eos_token_id must be at least 0 and below vocab_size {config.vocab_size}, got {unknown[0]}")
    numbers = {name: fields[name] for name in NUMBERS if fields.get(name) is not None}
    stops = fields.get("stop_strings") or []
    others = {name: value for name, value in fields.items() if name not in READ}
    return {
        "eos_token_ids": eos,
        "decode_strategy": _strategy(fields),
        **numbers,
        "stop_strings": tuple(stops) if isinstance(stops, list) else (stops,),
        "others": others,
    }


def _strategy(fields: dict[str, Any]) -> str:
    """`do_sample` is transformers' field, `decode_strategy` PaddleNLP's."""
    do_sample, strategy = fields.get("do_sample"), fields.get("decode_strategy")
    if do_sample not in (None, True, False):
        raise ValueError(f"do_sample must be true or false, got {json.dumps(do_sample)}")
    named = STRATEGIES[0 if do_sample else 1] if do_sample is not None else strategy or STRATEGIES[0]
    if strategy not in (None, named):
        rule = f"must mean the same, got {json.dumps(do_sample)} and {json.dumps(strategy)}. Delete the wrong one"
        raise ValueError(f"do_sample and decode_strategy {rule}")
    return str(named)
