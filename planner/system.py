"""What a training system's ops do beside the products: traits that decide a step's time and memory.

Traffic is counted tensor by tensor, in elements that a kernel reads or writes. Each trait is of the system's own code,
as it is published; `source` says where.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """Traits.

    Args:
        whole_tensors: tensors [tokens, hidden] that a layer's forward pass reads or writes between products: norms,
            additions, dropout.
        attention_tensors: tensors as wide as queries, keys and values together: rotation or rearrangement.
        mlp_tensors: of each width of the MLP's activation: it reads the first product's output and writes its own.
        score_bytes: read and written for each attention score, forward; 0 where scores never leave the chip.
        logit_bytes: read and written for each logit, forward and backward.
        skips_masked: attention computes no score that the causal mask hides.
        attention_backward: FLOPs of attention's backward pass over those of its forward pass.
        kernels: of a layer's forward pass, launched one by one; its backward pass launches `BACKWARD_KERNELS` times.
        gradient_bytes_moved: for each element of a weight and micro-batch: a product's result joins the gradient.
        update_bytes: read and written by the optimizer for each element that it owns.
        parameter_bytes, gradient_bytes, optimizer_bytes: held for each element of a weight.
        sent_gradient_bytes, sent_parameter_bytes: for each element, to the other copies of the model and back.
        hides_tensor: collectives of tensor parallelism run beside the products, in chunks.
        gathers_again: with sequence parallelism a product's input is gathered a second time, for the weight's gradient.
        hides_gradients: those of the gradients run beside the last backward pass.
        divides_sends: each rank of tensor sends a part of what goes to the next stage.
        adds_tied: the first stage and the last add the gradients of a tied embedding when all passes have ended.
        data_is_outermost: neighbours along data are further apart than those of a pipeline, else nearer.
        source: of these.
    """

    name: str
    whole_tensors: float
    attention_tensors: float
    mlp_tensors: float
    score_bytes: float
    logit_bytes: float
    skips_masked: bool
    attention_backward: float
    kernels: int
    gradient_bytes_moved: float
    update_bytes: float
    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    sent_gradient_bytes: float
    sent_parameter_bytes: float
    hides_tensor: bool
    gathers_again: bool
    hides_gradients: bool
    divides_sends: bool
    adds_tied: bool
    data_is_outermost: bool
    source: str


BACKWARD_KERNELS = 1.6

FUSIONKIT = System(
    name="fusionkit",
    whole_tensors=8,  # two norms: each reads stream and branch, writes their sum and the normalised values
    attention_tensors=2,  # rope reads and writes
    mlp_tensors=1,  # swiglu reads gate and up, and writes
    score_bytes=0,
    logit_bytes=8,  # in blocks: float32 written by the product, read for the loss
    skips_masked=True,
    attention_backward=2.5,  # the scores are computed again
    kernels=12,
    gradient_bytes_moved=12,  # float32: read, added to, written
    update_bytes=28,  # float32 parameter, gradient and two moments read; all but the gradient written
    parameter_bytes=4,
    gradient_bytes=4,
    optimizer_bytes=8,
    sent_gradient_bytes=4,
    sent_parameter_bytes=4,
    hides_tensor=True,
    gathers_again=False,
    hides_gradients=True,
    divides_sends=False,
    adds_tied=True,
    data_is_outermost=True,
    source="fusionkit's own ops: docs/mc2.md, docs/training.md, and the specs' costs",
)
