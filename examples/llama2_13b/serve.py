"""Answers over HTTP, many at once, with OpenAI's interface and a page to chat on.

    python -m examples.llama2_13b.serve --model output/exported
    python -m examples.llama2_13b.serve --model FOLDER_OF_A_MODEL --dtype bfloat16 --port 8080

SIGTERM or Ctrl-C: new requests are refused, those under way end; a second one ends these too.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import ClassVar

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from examples.llama2_13b.export import CACHE_DTYPE_HELP, FILES, ExportFlags, export, require_cache_dtype
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.quantization import ACTIVATIONS_HELP
from examples.llama2_13b.generate.device import DEVICE, WITHOUT_PASSES, left_out, use_device
from examples.llama2_13b.generate.engine import Engine, EngineLimits
from examples.llama2_13b.generate.key_value_cache import KeyValueCache, bytes_per_token
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.io import flags
from examples.llama2_13b.io.flags import Checked, flag
from examples.llama2_13b.io.remarks import say
from examples.llama2_13b.model.llama import DTYPES
from examples.llama2_13b.serving.engine_thread import EngineThread
from examples.llama2_13b.serving.http_server import HttpServer, listen
from examples.llama2_13b.serving.limits import is_loopback
from examples.llama2_13b.serving.metrics import Metrics
from examples.llama2_13b.serving.served_model import ServedModel
from examples.llama2_13b.serving.server_state import Limits, ServerState
from fusionkit.dtypes import QUANTIZED, ROUNDED

PROGRAM = "examples.llama2_13b.serve"
DEFAULT_DTYPE = "float32"
CACHE_BYTES = 2**30  # of keys and values, unless one row needs more
ROW_TOKENS = 512  # of the cache for each row, unless told: with fewer, long conversations often lose their blocks
MOST_ROWS = 64  # unless told: a product takes a token as long with more


@dataclass(frozen=True)
class ServeFlags(Checked):
    """A secret is safer in a file of flags than on the command line, which every user of the machine can read."""

    COMMAND: ClassVar[str] = "serve"
    model: str = flag("folder that export wrote, or what export takes, which is exported first")
    dtype: str | None = flag(f"of a model's folder: {' | '.join(DTYPES)}; {DEFAULT_DTYPE} if not given", None)
    weight_dtype: str | None = flag("likewise of its matrices: int8 | int4; dtype if not given", None)
    activations: str | None = flag("likewise " + ACTIVATIONS_HELP, None)
    cache_dtype: str | None = flag(f"likewise {CACHE_DTYPE_HELP}", None)
    served_model_name: str | None = flag("how clients call it; the folder's name if not given", None)
    host: str = flag("address to listen at; other machines reach 0.0.0.0", "127.0.0.1")
    port: int = flag("0 is any that is free", 8000)
    api_key: str | None = flag("what clients must send; nothing if not given", None)
    max_rows: int | None = flag("requests in the batch at most, others wait; as the cache serves if not given", None)
    max_queue: int = flag("requests that wait at most; more are refused with status 429", 64)
    max_tokens_per_step: int = flag("tokens of prompts and answers in a step at most", 512)
    max_prompt_tokens: int | None = flag("of a prompt; up to the model's positions if not given", None)
    max_body_bytes: int = flag("of a request", 4 * 2**20)
    request_seconds: float = flag("from a request's arrival to the end of its answer at most", 600.0)
    drain_seconds: float = flag("that requests under way may go on after SIGTERM", 60.0)
    cache_tokens: int | None = flag(
        "that the cache holds; if not given as many as 1 GiB holds, at least one row's", None
    )
    block_size: int = flag("positions in a block of the cache", 64)
    device: str | None = flag(DEVICE, None)
    without_passes: str | None = flag(WITHOUT_PASSES, None)

    def __post_init__(self) -> None:
        self.require(self.dtype in (None, *DTYPES), "dtype", " or ".join(DTYPES))
        self.require(self.weight_dtype in (None, *QUANTIZED), "weight_dtype", " or ".join(QUANTIZED))
        self.require(self.activations in ROUNDED, "activations", "int8 or left out")
        require_cache_dtype("serve", self.cache_dtype)
        self.require(0 <= self.port < 2**16, "port", "from 0 to 65535")
        self.require(self.api_key is None or bool(self.api_key.strip()), "api_key", "a text that is not empty")
        for name in ("max_tokens_per_step", "max_body_bytes", "block_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.max_queue >= 0, "max_queue", "at least 0")
        self.require(self.max_tokens_per_step >= (self.max_rows or 1), "max_tokens_per_step", "at least max_rows")
        for name in ("max_rows", "max_prompt_tokens", "cache_tokens"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, "at least 1")
        self.require(self.request_seconds > 0, "request_seconds", "above 0")
        self.require(self.drain_seconds >= 0, "drain_seconds", "at least 0")


def serve(flags: ServeFlags) -> int:
    """Serve until a signal.

    Raises:
        ValueError, OSError: something in flags, folder or address is wrong; nothing is served.
    """
    signal.signal(signal.SIGTERM, _end)
    listener = listen(flags.host, flags.port)
    if not is_loopback(flags.host) and flags.api_key is None:
        say(f"serve: other machines may reach {flags.host}, and no --api_key is asked for", sys.stderr)
    state = load(flags)
    return HttpServer(state, listener).run_until_stopped()


def _end(number: int, frame: FrameType | None) -> None:
    """Before the server takes over signals: an export that has begun is removed again."""
    sys.exit(128 + number)  # as a shell says of signals


def load(flags: ServeFlags) -> ServerState:
    """The model, ready to answer on its device."""
    use_device(flags.device, "serve")
    source = Path(flags.model)
    name = flags.served_model_name or name_of(source)
    with exported(source, flags) as program:
        model = ServedModel.from_folder(program, name, flags.max_prompt_tokens)
        engine = make_engine(program, model, flags)
    metrics = Metrics()
    thread = EngineThread(engine, metrics, engine.limits.max_rows + flags.max_queue)
    metrics.watch(lambda: thread.stats)
    limits = Limits(flags.max_body_bytes, flags.request_seconds, flags.drain_seconds)
    return ServerState(model, thread, metrics, limits, flags.api_key, is_loopback(flags.host))


def name_of(source: Path) -> str:
    """Of a folder its own, of a file without what follows the last dot."""
    path = source.resolve()
    return path.name if path.is_dir() else path.stem


@contextlib.contextmanager
def exported(source: Path, flags: ServeFlags) -> Iterator[Path]:
    """The folder, or an export of it that is removed when the program has been read: one way to run a model."""
    if all((source / name).exists() for name in FILES):
        for name in ("dtype", "weight_dtype", "activations", "cache_dtype"):
            flags.require(getattr(flags, name) is None, name, "left out with an exported folder, which has its own")
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="serve-") as temporary:
        folder = Path(temporary) / name_of(source)
        dtype = flags.dtype or DEFAULT_DTYPE
        of_model = {name: getattr(flags, name) for name in ("weight_dtype", "activations", "cache_dtype")}
        export(ExportFlags(str(source), str(folder), dtype, **of_model))
        yield folder


def make_engine(folder: Path, model: ServedModel, flags: ServeFlags) -> Engine:
    config = LlamaConfig.from_json(folder / "config.json")
    program = StaticProgram(folder, config, left_out(flags.without_passes))
    for line in program.passes_log:
        say(line, sys.stderr)
    rows, tokens = rows_and_cache(config, program.cache_dtype, model.positions, flags)
    cache = KeyValueCache(config, program.cache_dtype, -(-tokens // flags.block_size), flags.block_size)
    limits = EngineLimits(model.positions, model.vocab_size, rows, flags.max_tokens_per_step, program.takes_parts)
    return Engine(program, cache, model.tokenizer.decode, limits)


def rows_and_cache(config: LlamaConfig, dtype: str, positions: int, flags: ServeFlags) -> tuple[int, int]:
    """(rows of a step, tokens of a cache in dtype). As many as CACHE_BYTES hold: at least one row's, at most all rows'.

    Rows have ROW_TOKENS each, or all their positions if these are fewer.
    """
    tokens = flags.cache_tokens or max(CACHE_BYTES // bytes_per_token(config, dtype), positions)
    fitting = min(tokens // min(ROW_TOKENS, positions), MOST_ROWS, flags.max_tokens_per_step)
    rows = flags.max_rows or max(1, fitting)
    return rows, flags.cache_tokens or min(tokens, rows * positions)


if __name__ == "__main__":
    flags.main(ServeFlags, serve, PROGRAM)
