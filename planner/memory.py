"""What a device must hold and send to train Llama 2 13B: tensor parallelism beside plans that have none.

Mixed precision with Adam: 2 bytes of weight, 2 of gradient and 12 of float32 weight and moments for each parameter
(Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1), of which stage 1, 2 and 3 shard the last, the last two, all.
Every layer is recomputed: its input is kept, and one layer's 34 bytes for each token and hidden element are alive
(Korthikanti et al. 2022, arXiv:2205.05198, eq. 1, whose attention term a fused attention does not have).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusionkit_planner.llama import HIDDEN_SIZE, NUM_HIDDEN_LAYERS, NUM_PARAMETERS, VOCAB_SIZE
from fusionkit_planner.overlap import collective_seconds

from fusionkit.backend import DeviceModel

WEIGHT, GRADIENT, OPTIMIZER = 2.0, 2.0, 12.0
COLLECTIVES_A_LAYER = 8  # qkv, o_proj, gate_up, down; forward and backward


@dataclass(frozen=True)
class Plan:
    """One way to use the devices.

    Args:
        name: in words.
        state_bytes: weights, gradients and optimizer of one device.
        activation_bytes: of one micro-batch on one device.
        sending_s: collectives of one step alone, in which every device's share is one micro-batch.
    """

    name: str
    state_bytes: float
    activation_bytes: float
    sending_s: float

    @property
    def total_bytes(self) -> float:
        return self.state_bytes + self.activation_bytes

    def fits(self, device: DeviceModel) -> bool:
        """With a tenth of the memory left for the framework, buffers and fragmentation."""
        return self.total_bytes <= 0.9 * device.memory_bytes


def activation_bytes(tokens: int) -> float:
    """Layer inputs in 16 bits, one layer alive, logits in float32."""
    return tokens * (2.0 * HIDDEN_SIZE * NUM_HIDDEN_LAYERS + 34.0 * HIDDEN_SIZE + 4.0 * VOCAB_SIZE)


def plans(device: DeviceModel, tokens: int, num_devices: int) -> Iterator[Plan]:
    """Tensor and sequence parallelism over all devices, and data parallelism with sharding stages 1 to 3."""
    state = WEIGHT + GRADIENT + OPTIMIZER
    layer = collective_seconds(device, num_devices, 2.0 * tokens * HIDDEN_SIZE)
    yield Plan(
        f"tensor parallel {num_devices}",
        state * NUM_PARAMETERS / num_devices,
        activation_bytes(tokens) / num_devices,
        num_devices * NUM_HIDDEN_LAYERS * COLLECTIVES_A_LAYER * layer,
    )
    weights = collective_seconds(device, num_devices, 2.0 * NUM_PARAMETERS)
    for stage, sharded, times_sent in (
        (1, OPTIMIZER, 2),
        (2, OPTIMIZER + GRADIENT, 2),
        (3, state, 3),
    ):
        yield Plan(
            f"data parallel {num_devices}, sharding stage {stage}",
            (state - sharded + sharded / num_devices) * NUM_PARAMETERS,
            activation_bytes(tokens),
            times_sent * weights,
        )


def step_flops_s(device: DeviceModel, dtype: str, tokens: int) -> float:
    """The products of one device's share of a step, 6 FLOPs a parameter and token; the same in every plan."""
    return 6.0 * NUM_PARAMETERS * tokens / device.flops[dtype]
