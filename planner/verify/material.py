"""What a run trains, and on what, where the user gives a configuration alone: random weights and random words."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from fusionkit_planner import architecture
from fusionkit_planner.architecture import Architecture

from fusionkit.errors import argument_error

TOKENIZERS = ("tokenizer.json", "tokenizer.model")
WORDS, LETTERS = 64, 4  # different words, and the letters of each
SEED = 42
FLOAT32 = 4
SPARE_BYTES = 1e9  # beside the weights, of memory and of disk
# Of the tokenizer that is trained on the words; what the configuration says belongs to another one.
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def is_complete(model: Path, needs_weights: bool) -> bool:
    """Whether a training command can read it as it is."""
    has_tokenizer = any((model / name).is_file() for name in TOKENIZERS)
    return has_tokenizer and (not needs_weights or any(model.glob("*.safetensors")))


def write_data(folder: Path, rows: int, sequence: int) -> None:
    """`train.json`: as many samples as a step has rows, each at least as long as a row.

    A sample that is cut to `sequence` tokens fills a row, so every step is an epoch of full rows.
    """
    chance = random.Random(SEED)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(chance.choices(letters, k=LETTERS)) for _ in range(WORDS)]
    folder.mkdir()
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        for _ in range(rows):
            sample = {"src": words[0], "tgt": " ".join(chance.choices(words, k=sequence + 1))}
            file.write(json.dumps(sample) + "\n")


def creator(entry: Path) -> Path:
    """The command that makes models, beside the training command.

    Raises:
        ValueError: there is none.
    """
    file = entry.with_name("create.py")
    if not file.is_file():
        rule = "a folder with weights and a tokenizer"
        what = f"nothing makes them: {file} is not there"
        raise argument_error(
            "plan train", "--model", rule, "one without", what, "Give such a folder, or another --entry"
        )
    return file


def write_model(source: Path, folder: Path, data: Path, entry: Path, has_weights: bool) -> None:
    """A model folder of this configuration, with a tokenizer trained on the data.

    Args:
        source: a Hugging Face folder, or a config.json.
        folder: is made.
        has_weights: random ones in float32; false for configuration and tokenizer alone.

    Raises:
        ValueError: the command that makes it refuses, or there is no room for the weights.
    """
    if has_weights:
        require_room(architecture.read(source), folder.parent)
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(architecture.configuration(source) | SPECIAL_TOKENS))
    words = ["--config", config, "--dataset_name_or_path", data, "--output_dir", folder]
    command = [sys.executable, "-W", "ignore", creator(entry), *words, "--weights", str(has_weights).lower()]
    made = subprocess.run(list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode:
        last = (made.stderr.strip() or made.stdout.strip() or f"status {made.returncode}").splitlines()[-1]
        raise argument_error("plan train", "--model", "one that --verify can make", str(source), last)


def require_room(model: Architecture, folder: Path) -> None:
    """One process makes all weights, and writes them.

    Raises:
        ValueError: memory or disk are too small.
    """
    needed = FLOAT32 * model.parameters + SPARE_BYTES
    rooms = {"free memory": available_bytes(), f"free disk at {folder}": shutil.disk_usage(folder).free}
    for name, room in rooms.items():
        if room < needed:
            raise argument_error(
                "plan train", "--verify", f"given {needed / 1e9:.1f} GB of {name} for random weights",
                f"{room / 1e9:.1f} GB", advice="Give a model of fewer layers, or set TMPDIR to a larger disk",
            )  # fmt: skip


def available_bytes() -> float:
    """Memory that the host can give without taking it from others."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
