"""What `fusionkit bench mc2` measures: how much of a collective's time a fused product hides. See docs/mc2.md.

Each rank is a process with a core and a network namespace of its own; its egress is shaped to a given rate. In each
round every contestant runs once, after a barrier, and counts with the time of its slowest rank.

    cases.py        an op, a direction and sizes; sizes for which a wanted c results
    contestants.py  the callables of a case: product, collective, serial, fused, control, chunks
    protocol.py     rounds on the ranks, and the slowest rank of each
    threads.py      processor time of the threads that do not compute
    statistics.py   medians, bootstrap intervals and the formulas
    measurement.py  what was measured of one case, and its figures
    claim.py        why a measurement proves nothing
    cores.py, network.py, process.py   a core, a shaped link and a process for each rank
    rank.py         what such a process runs
    run.py          the whole: sets up, chooses sizes, measures, draws
    grid.py         100 shapes, never slower than the serial version
    report.py, chart.py   tables and JSON; H against c
    timeline.py, traffic.py   one call's lanes; what its link carried
"""
