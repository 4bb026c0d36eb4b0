"""What the `triton` executor runs: Triton kernels, the network lowered to them, and CUDA graphs of its steps."""
