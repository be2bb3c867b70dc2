"""How the native code is built: build.py says from what, incremental.py compiles only what changed. Not installed."""
