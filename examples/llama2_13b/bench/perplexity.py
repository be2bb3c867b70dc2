"""What rounding to 8 and 4 bits does to a model: `python -m examples.llama2_13b.bench.perplexity --model MODEL`.

Weights are rounded, or keys and values in the cache.

The perplexity of a text is exp(mean of -log p(token | the tokens before it)). The text is cut into windows, and no
token sees more than its own. Activations have the same dtype in every row of the table; `--activations int8` rounds
those that meet codes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

import numpy as np
import paddle
from numpy.typing import NDArray

from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.model_folder import WithCodes, config_of, weights_of
from examples.llama2_13b.folders.quantization import ACTIVATIONS_HELP, Format, Quantization
from examples.llama2_13b.generate.decode_step import CACHE_DTYPES, DecodeStep
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.step_inputs import Part, collate
from examples.llama2_13b.io.text import ENCODING
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import DTYPES
from examples.llama2_13b.model.quantized_llama import QuantizedLlama

TEXT = Path(__file__).with_name("perplexity.txt")
ROWS_AT_A_TIME = 64  # of logits in float64
Logits = Callable[[list[int]], NDArray[np.float32]]


@dataclass(frozen=True)
class Measured:
    """A row of the table: what was rounded how, and the text's perplexity."""

    rounded: str
    perplexity: float

    def line(self, first: Measured) -> str:
        return f"{self.rounded:<55}{self.perplexity:10.4f}{self.perplexity / first.perplexity - 1:+10.2%}"


def models(
    source: Path, dtype: str, group_size: int | None, activations: str | None
) -> Iterator[tuple[str, Callable[[], Logits]]]:
    """What to measure, and how to load what gives its logits; one at a time is held."""
    floats = partial(Llama.from_pretrained, source, dtype)
    yield f"floats, as read, {dtype}", partial(_of_a_model, logits, floats)
    for cache_dtype in (None, *CACHE_DTYPES):
        through_cache = partial(logits_through_cache, cache_dtype=cache_dtype)
        yield f"floats, and a cache of {cache_dtype or dtype}", partial(_of_a_model, through_cache, floats)
    for name, load in _quantized(source, dtype, group_size, activations):
        yield name, partial(_of_a_model, logits, load)


def _of_a_model(logits_of: Callable[[Llama, list[int]], NDArray[np.float32]], load: Callable[[], Llama]) -> Logits:
    model = load()
    model.eval()
    return partial(logits_of, model)


def _quantized(
    source: Path, dtype: str, group_size: int | None, activations: str | None
) -> Iterator[tuple[str, Callable[[], Llama]]]:
    load = partial(QuantizedLlama.load, source, dtype, activations=activations)
    if isinstance(weights_of(source), WithCodes):
        yield "codes, as stored", load
    for bits in ("int8", "int4"):
        for symmetric in (True, False):
            form = Format(bits, group_size, symmetric)
            rounding = Quantization.rounded_to(form)
            yield f"floats, rounded to {form}", partial(load, rounding=rounding, as_stored=False)


def logits(model: Llama, tokens: list[int]) -> NDArray[np.float32]:
    """[tokens, vocab_size]"""
    found: NDArray[np.float32] = model(paddle.to_tensor([tokens])).numpy()[0]
    return found


def logits_through_cache(model: Llama, tokens: list[int], cache_dtype: str | None) -> NDArray[np.float32]:
    """The same by one step of decoding in which all tokens are new: each sees the keys and values of the cache."""
    step = DecodeStep(model, cache_dtype)
    cache = KeyValueCache(model.config, cache_dtype or model.activation_dtype, 1, len(tokens))
    given = dataclasses.replace(collate([Part(tokens, 0, [0])]), last_tokens=np.arange(len(tokens), dtype=np.int32))
    caches = [cache.keys, cache.values, *([cache.key_scales, cache.value_scales] if cache_dtype else [])]
    found: NDArray[np.float32] = step(*map(paddle.to_tensor, vars(given).values()), *caches).numpy()
    return found


def perplexity(logits_of: Logits, windows: list[list[int]]) -> float:
    """Of tokens in windows; the first of each has no probability."""
    loss, count = 0.0, 0
    for tokens in windows:
        with paddle.no_grad():
            scores = logits_of(tokens)[:-1]
        loss -= sum(_log_probabilities(scores, np.array(tokens[1:])))
        count += len(tokens) - 1
    return float(np.exp(loss / count))


def _log_probabilities(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Iterator[float]:
    """Sums over some rows each."""
    for begin in range(0, len(targets), ROWS_AT_A_TIME):
        rows = logits[begin : begin + ROWS_AT_A_TIME].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), targets[begin : begin + ROWS_AT_A_TIME]]
        yield float((chosen - np.log(np.exp(rows).sum(axis=1))).sum())


def cut(tokens: list[int], window: int) -> list[list[int]]:
    """Windows of at least two tokens."""
    windows = [tokens[begin : begin + window] for begin in range(0, len(tokens), window)]
    return [each for each in windows if len(each) > 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a model folder or a GGUF file")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--window", type=int, default=1024, help="tokens that see each other at most")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the activations")
    parser.add_argument("--group_size", type=int, default=32, help="0 for a whole column")
    parser.add_argument("--activations", choices=("int8",), help=ACTIVATIONS_HELP)
    asked = parser.parse_args()
    tokens = Tokenizer.from_pretrained(asked.model).encode(asked.text.read_text(encoding=ENCODING))
    windows = cut(tokens, min(asked.window, config_of(asked.model).max_position_embeddings))
    print(f"{asked.model.name}, {asked.text.name}: {len(tokens)} tokens in {len(windows)} windows")
    print(f"{'rounded':<55}{'perplexity':>10}{'':>10}")
    first = None
    for name, load in models(asked.model, asked.dtype, asked.group_size or None, asked.activations):
        measured = Measured(name, perplexity(load(), windows))
        first = first or measured
        print(measured.line(first), flush=True)


if __name__ == "__main__":
    main()
