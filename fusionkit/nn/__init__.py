"""Paddle layers on the ops: parameters live here, arithmetic in `fusionkit`. No device is named.

Parameters are float32; the arithmetic is that of the activations that come in.
"""

from fusionkit.nn.language_model_head import LanguageModelHead
from fusionkit.nn.linear import Linear
from fusionkit.nn.quantized_linear import QuantizedLinear
from fusionkit.nn.recompute import recompute
from fusionkit.nn.rms_norm import RMSNorm
from fusionkit.nn.rotary_embedding import RotaryEmbedding

__all__ = ["LanguageModelHead", "Linear", "QuantizedLinear", "RMSNorm", "RotaryEmbedding", "recompute"]
