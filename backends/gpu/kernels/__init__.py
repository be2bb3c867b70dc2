"""Triton kernels, one idea a file: each with a function that launches it over tensors that are there already.

A tensor is anything with `data_ptr()`, `dtype`, `shape` and `stride()`. Outputs are handed in: who allocates, and how
gradients flow, is the framework's (`autograd/`).
"""
