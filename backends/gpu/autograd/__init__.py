"""The ops on PyTorch tensors: what allocates, calls the kernels and tells autograd. One op a file."""
