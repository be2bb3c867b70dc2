"""What the installed Paddle was built for, told from its own version file without importing it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path


def built_for(entry: str) -> str | None:
    """The value of an entry such as "cuda_version"; None where Paddle is missing or was built without."""
    spec = importlib.util.find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0], "version", "__init__.py")
    match = re.search(rf"^{entry}\s*=\s*'([^']+)'", file.read_text(), re.MULTILINE) if file.exists() else None
    return None if match is None or match[1] in ("False", "None", "0") else match[1]
