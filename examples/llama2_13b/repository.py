"""Puts the repository on Python's path, for a command that runs as a file: `python /path/to/sft.py`."""

import os
import sys
from pathlib import Path

root = str(Path(__file__).resolve().parents[2])
sys.path[0] = root  # instead of the file's own folder, whose modules have names that others may use too
# For the processes that this one starts.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))

import examples.llama2_13b  # noqa: E402, F401 - its checks come before Paddle's import
