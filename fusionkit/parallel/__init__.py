"""Processes that compute together: the communicator, over shared memory between the processes of one host.

    from fusionkit.parallel import Communicator, unique_id

    communicator = Communicator(identifier, rank, world_size)   # identifier: rank 0's unique_id(), given to all
    total = communicator.all_reduce(gradient)

Importing this imports no framework and starts nothing.
"""

from fusionkit.parallel.communicator import Communicator, group, unique_id
from fusionkit.parallel.sums import sum_in_order
from fusionkit.parallel.work import CommunicatorError, Work

__all__ = ["Communicator", "CommunicatorError", "Work", "group", "sum_in_order", "unique_id"]
