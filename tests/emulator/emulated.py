"""Commands on an emulated device, each in a process of its own: Paddle finds its devices when it is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.hanging import HANGING

FUSIONKIT = (sys.executable, "-c", "import sys; from fusionkit.cli import main; sys.exit(main())")


def run(device, *command, options=(), timeout=HANGING, **environment):
    emulate = (*FUSIONKIT, "emulate", device, "--memory", "4GiB", *options, "--", *command)
    # GLOG: Paddle tells for every process which plugins it loads.
    settings = {**os.environ, "GLOG_minloglevel": "2", **environment}
    return subprocess.run(emulate, env=settings, capture_output=True, text=True, timeout=timeout)


def passed(device, file, *options, **environment):
    """Run a file's tests on the device. Returns how many passed, and what pytest said at its end."""
    pytest = (sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist")
    result = run(device, *pytest, file, *options, **environment)
    end = result.stdout[-6000:] + result.stderr[-2000:]
    assert result.returncode == 0, end
    found = re.search(r"(\d+) passed", result.stdout)
    assert found, end
    return int(found[1]), end
