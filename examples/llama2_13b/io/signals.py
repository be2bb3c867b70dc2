"""The signals that ask a command to end: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
