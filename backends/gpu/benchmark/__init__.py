"""The pieces of bench_gpu.py: what is measured beside what, one idea a file. Not run on hardware."""
