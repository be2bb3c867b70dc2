"""fusionkit: fused LLM ops, one name on every device.

    import fusionkit as fk

    y = fk.fusion_rms_norm(x, weight)              # runs on the backend that can
    print(fk.fusion_rms_norm.explain(x, weight))   # which one, and why
    print(fk.ledger())                             # what ran so far

Importing this imports no framework and probes no device.
"""

import warnings

from fusionkit.backend import Backend, Check, DeviceModel, Kernel
from fusionkit.errors import FusionkitError, NoBackendError, PluginError, SettingError
from fusionkit.ledger import ledger
from fusionkit.memory import keep_freed_memory
from fusionkit.op import Explanation, Op
from fusionkit.ops import OP_NAMES
from fusionkit.packed_weight import PackedWeight, pack_weight
from fusionkit.policy import use_backend
from fusionkit.registry import backends
from fusionkit.spec import GroupSpec, TensorSpec

__version__ = "0.1.0"

# Paddle 3.3's import warns of this; ccache is for compiling extensions, which nothing here does while it runs.
warnings.filterwarnings("ignore", "No ccache found", UserWarning, module=r"paddle\.utils\.cpp_extension")

fusion_rms_norm = Op("fusion_rms_norm")
fusion_add_rms_norm = Op("fusion_add_rms_norm")
fusion_rope = Op("fusion_rope")
flash_attention = Op("flash_attention")
paged_attention = Op("paged_attention")
swiglu = Op("swiglu")
fused_linear = Op("fused_linear")
fused_linear_cross_entropy = Op("fused_linear_cross_entropy")
fused_adamw = Op("fused_adamw")
all_gather_matmul = Op("all_gather_matmul")
matmul_reduce_scatter = Op("matmul_reduce_scatter")
matmul_all_reduce = Op("matmul_all_reduce")

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
    "keep_freed_memory",
    "ledger",
    "pack_weight",
    "use_backend",
]
