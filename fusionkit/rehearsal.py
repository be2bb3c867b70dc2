"""Whether devices compute nothing: `fusionkit emulate --rehearse`."""

from __future__ import annotations

import os

# Read by the emulator's library too, which is why it is not one of the core's settings.
VARIABLE = "FUSIONKIT_EMULATOR_REHEARSE"
# What everything says that such a run prints or writes.
NOTE = "rehearsal: nothing was computed"


def is_rehearsal() -> bool:
    """Whether this process runs under `fusionkit emulate --rehearse`.

    There every number that a device computed reads 1.0. A script asks before it reads weights that nobody will use, or
    writes a model that nobody has trained.
    """
    return os.environ.get(VARIABLE) == "1"
