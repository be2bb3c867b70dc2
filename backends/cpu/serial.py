"""What `explain` says of a collective call whose product and collective run one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from fusionkit.call import Call
from fusionkit.capability import Predicate, Verdict

SERIAL = "serial: overlapping would be slower (few rows, or a fast link)"


@dataclass(frozen=True)
class IsSerial(Predicate):
    """Whether a call would not overlap, as far as its group was measured before; unknown else.

    Args:
        model: the function of `overlap_model` that predicts it.
        rows: the axis that the model takes: the rows that a rank contributes or keeps.
    """

    model: str
    rows: str

    def judge(self, call: Call) -> Verdict:
        from fusionkit_backends.cpu import overlap_model  # NumPy, which reading a backend does not import

        from fusionkit.frameworks.numpy import DTYPES
        from fusionkit.parallel import chunks
        from fusionkit.parallel.groups import known_communicator

        x, weight, world_size = call.tensors["x"], call.tensors["weight"], call.dims["world_size"]
        if world_size > 1 and (call.dims[self.rows] < chunks.MIN_ROWS or 0 in weight.shape):
            return Verdict("yes")
        communicator = known_communicator(call.values["group"])
        found = communicator and overlap_model.known_rates(communicator, x.dtype)
        if not found or world_size == 1:
            return Verdict("unknown")
        predict = getattr(overlap_model, self.model)
        choice = predict(found, call.dims[self.rows], weight.shape, DTYPES[x.dtype].itemsize, world_size)
        return Verdict("no" if choice.overlaps else "yes")
