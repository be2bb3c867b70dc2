"""Static programs: write them with device-neutral ops, load them.

An exported program holds `fusionkit_<op>` for each op that was traced, and no backend's own. One export runs wherever a
backend takes the neutral ops.
"""

from fusionkit.passes.export import export
from fusionkit.passes.load import create_predictor, load_neutral_ops

__all__ = ["create_predictor", "export", "load_neutral_ops"]
