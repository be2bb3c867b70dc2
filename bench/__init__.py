"""What `fusionkit bench` measures, and how.

The calls and what each costs at least come from the specs (`OpSpec.benchmarks`, `OpSpec.cost`); the ceilings, the
kernel into preallocated outputs and the targets from the backend (`Backend.benchmark`). Contestants live in worker
processes, so that memory settings made for one (`keep_freed_memory`) do not reach another. In each round every
contestant runs once, one after the other: what slows the machine slows all. Medians of the rounds are compared, and
the spread is shown.

    command.py      the arguments of `fusionkit bench`
    subject.py      one row of the table: op, call, dtype
    contestants.py  the callables of a worker
    torch_peers.py  the same calls composed of PyTorch's functions
    worker.py       the process, and the handle to it
    rounds.py       interleaved rounds over the workers
    result.py       medians, floors, ratios
    target.py       ratios that a backend promises, and whether they are reached
    roofs.py        the best rates of the ceilings
    processor.py    which one it was
    table.py        every result, for people
    chart.py        one row an op, at a glance
    record.py       JSON, for pytest-benchmark, and the way back
    markdown.py     tables
    fresh_memory.py  what memory costs that is fetched anew, and what keeping it costs
    dispatch.py     what choosing a backend costs
    batch_invariance.py  what `fk.use_batch_invariant` costs
    int8_cache.py   attention over caches of int8 and bfloat16
    mc2/            how much communication the fused products hide
    collectives/    the communicator beside gloo and OpenMPI
"""
