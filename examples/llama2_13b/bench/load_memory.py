"""How much host memory reading a checkpoint takes on each rank: `python -m examples.llama2_13b.bench.load_memory`.

The folder has the size of a real one, 26 GB in bfloat16 for 13B, and takes no room: its files are sparse. For each
tensor-parallel degree one process after another is a rank of it. It reads its own part of every parameter, as loading
does, and forgets it. What a rank holds beyond its parameters is the peak of its memory meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

if not __package__:  # python path/to/this/file, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import repository  # noqa: F401

from examples.llama2_13b.folders import checkpoint, safetensors_folder
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import elements, layout
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from examples.llama2_13b.parallel.writers import Writers

CONFIG = Path(__file__).parents[1] / "configs" / "llama2_13b.json"
MODULE = "examples.llama2_13b.bench.load_memory"


def write_sparse(folder: Path, config: Path) -> int:
    """A model folder whose values are all zero and take no room on disk; the bytes that it seems to have."""
    table = layout(LlamaConfig.from_json(config))
    dtypes = dict.fromkeys(elements(table), "BF16")
    files = checkpoint.files(folder, "model", table, dtypes, Writers())
    safetensors_folder.write_index(folder, "model", files.weight_map)
    (folder / "config.json").write_bytes(config.read_bytes())
    return sum(path.stat().st_size for path in folder.iterdir())


def read_as(folder: Path, rank: int, degree: int) -> dict[str, float]:
    """Read this rank's part of every parameter, one at a time. Bytes and seconds."""
    table = layout(LlamaConfig.from_json(folder / "config.json"))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, started = resident("VmRSS"), time.perf_counter()
    shards = TensorParallel(SimpleNamespace(rank=rank, world_size=degree))
    weights = checkpoint.Reader(folder, table, shards=shards)
    parameters = sum(weights.read(name).nbytes for name in table)
    seconds = time.perf_counter() - started
    return {"parameters": parameters, "peak": resident("VmHWM") - before, "seconds": seconds}


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at most (VmHWM). Linux has them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(folder: Path, degree: int) -> list[dict[str, float]]:
    """Of every rank."""
    found = []
    for rank in range(degree):
        words = [sys.executable, "-m", MODULE, "--folder", str(folder), "--rank", str(rank), "--degrees", str(degree)]
        found.append(
            json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        )
        line = ", ".join(f"{found[-1][name] / 1e9:.3f} GB {name}" for name in ("parameters", "peak"))
        print(f"  rank {rank} of {degree}: {line}, {found[-1]['seconds']:.0f} s", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_path", type=Path, default=CONFIG, help="config.json of the model")
    parser.add_argument("--degrees", type=int, nargs="+", default=[1, 2, 8], help="tensor-parallel degrees")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a rank
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(read_as(options.folder, options.rank, *options.degrees)))
        return
    with tempfile.TemporaryDirectory() as name:
        print(f"{write_sparse(Path(name), options.config_path) / 1e9:.1f} GB of sparse files")
        for degree in options.degrees:
            ranks = measure(Path(name), degree)
            total = {key: sum(rank[key] for rank in ranks) / 1e9 for key in ("parameters", "peak")}
            print(f"{degree} ranks: {total['parameters']:.1f} GB of parameters, {total['peak']:.1f} GB beside them")


if __name__ == "__main__":
    main()
