"""Static programs: write them with device-neutral ops, load them.

An exported program holds `fusionkit_<op>` for each op that was traced, and no backend's own. One export runs on the
host as it is, and on a device after the passes of the device's backend, or op by op.
"""

from fusionkit.passes.export import export
from fusionkit.passes.load import Loaded, create_predictor, load, load_neutral_ops

__all__ = ["Loaded", "create_predictor", "export", "load", "load_neutral_ops"]
