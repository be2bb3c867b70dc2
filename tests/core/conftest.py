"""Fixtures of the core's tests."""

from __future__ import annotations

import pytest

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
