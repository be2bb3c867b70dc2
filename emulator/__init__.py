"""A software stand-in for accelerators: a custom device of Paddle, and what starts a command with it.

Nothing here is hardware, and nothing measured on it speaks of a card. Importing this package imports no framework.
"""

from fusionkit_emulator.environment import DEVICE_TYPES, SETTINGS

__all__ = ["DEVICE_TYPES", "SETTINGS"]
