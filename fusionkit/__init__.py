"""fusionkit: fused LLM ops, one name on every device.

    import fusionkit as fk

    y = fk.fusion_rms_norm(x, weight)              # runs on the backend that can
    print(fk.fusion_rms_norm.explain(x, weight))   # which one, and why
    print(fk.ledger())                             # what ran so far

Importing this imports no framework and probes no device.
"""

import warnings
from typing import TYPE_CHECKING

from fusionkit.backend import Backend, Check, DeviceModel, Kernel
from fusionkit.errors import FusionkitError, NoBackendError, PluginError, SettingError
from fusionkit.ledger import ledger
from fusionkit.memory import keep_freed_memory
from fusionkit.op import Explanation, Op
from fusionkit.ops import OP_NAMES
from fusionkit.packed_weight import PackedWeight, pack_weight
from fusionkit.policy import use_backend, use_batch_invariant
from fusionkit.registry import backends
from fusionkit.rehearsal import is_rehearsal
from fusionkit.spec import GroupSpec, TensorSpec

__version__ = "0.1.0"

# Paddle 3.3's import warns of this; ccache is for compiling extensions, which nothing here does while it runs.
warnings.filterwarnings("ignore", "No ccache found", UserWarning, module=r"paddle\.utils\.cpp_extension")

globals().update({name: Op(name) for name in OP_NAMES})
if TYPE_CHECKING:

    def __getattr__(name: str) -> Op: ...


__all__ = [
    *OP_NAMES,
    "Backend",
    "Check",
    "DeviceModel",
    "Explanation",
    "FusionkitError",
    "GroupSpec",
    "Kernel",
    "NoBackendError",
    "Op",
    "PackedWeight",
    "PluginError",
    "SettingError",
    "TensorSpec",
    "backends",
    "is_rehearsal",
    "keep_freed_memory",
    "ledger",
    "pack_weight",
    "use_backend",
    "use_batch_invariant",
]
