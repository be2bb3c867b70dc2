"""Llama 2: fine-tuned, exported, answering."""

import os
import tempfile

import fusionkit  # noqa: F401  # before Paddle, whose import warns of ccache otherwise


def _require_paddles_folder() -> None:
    """Paddle 3.3 makes this folder at its import (paddle/dataset/common.py), and its error names no cure."""
    home = os.path.expanduser("~")
    folder = os.path.join(home if os.access(home, os.W_OK) else tempfile.gettempdir(), ".cache", "paddle", "dataset")
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        pass  # Paddle does not mind either
    except OSError as error:
        cure = f"Remove what is in its way under {home}, or set HOME to a folder that can be written"
        raise SystemExit(f"error: Paddle needs the folder {folder}: {error.strerror}. {cure}") from None


_require_paddles_folder()
