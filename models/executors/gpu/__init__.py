"""The `triton` executor: the network lowered to Triton kernels, whose launches are recorded as CUDA graphs by step."""
