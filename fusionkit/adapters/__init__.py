"""What the kernels of backends share: a device's op takes less than the op that users call, and this makes up for it.

| file | what |
| --- | --- |
| `attention` | flash_attention by a device's op with its own square causal mask, or one dense mask |
| `masks` | attention masks as one dense tensor; rows that see no key |
| `angles` | the rows of cos and sin that tokens take, for a rope op without position_ids |
| `rope` | fusion_rope by Paddle's own function, in its builds for CUDA and XPU |
| `norm` | fusion_rms_norm by a device's op that takes one dtype for x and weight |
| `nothing` | results of calls without any element, which devices do not launch |
| `products` | a master weight in a product, and its gradient in its own dtype |
| `gradients` | autograd for a linear map, and for a product of two tensors |
| `handle` | what a deferred call returns where nothing is deferred |
| `conditions` | predicates that many declarations need, such as a master weight's |

`conditions` imports no framework, so that a backend's `__init__.py` may. Kernels import the others.
"""
