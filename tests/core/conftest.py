"""Fixtures of the core's tests."""

from __future__ import annotations

import contextlib

import pytest

import fusionkit as fk
from fusionkit import registry


@pytest.fixture
def install(monkeypatch):
    """install(backend, ...) puts backends beside the installed ones."""

    def install(*backends):
        plugins = {plugin.name: plugin for plugin in registry.plugins()}
        plugins |= {b.name: registry.Plugin(b.name, f"{b.name}-package 1.0", b) for b in backends}
        listed = tuple(plugins[name] for name in sorted(plugins))
        monkeypatch.setattr(registry, "plugins", lambda: listed)

    return install


@pytest.fixture
def prefer(install):
    """prefer(backend) installs a backend that is asked before the CPU's own until the test ends."""
    with contextlib.ExitStack() as wishes:

        def prefer(backend):
            install(backend)
            wishes.enter_context(fk.use_backend([backend.name, "cpu"]))

        yield prefer
