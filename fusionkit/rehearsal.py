"""Whether the devices of this process check calls and compute nothing, which the setting FUSIONKIT_REHEARSAL=1 says."""

from __future__ import annotations

import os

VARIABLE = "FUSIONKIT_REHEARSAL"
# What everything says that such a run prints or writes.
NOTE = "rehearsal: nothing was computed"


def is_rehearsal() -> bool:
    """Whether devices compute nothing, so that every number that is read from them is 1.0.

    A script asks before it reads weights that nobody will use, or writes a model that nobody has trained.
    """
    return os.environ.get(VARIABLE) == "1"
