"""The CPU's own kernels: C++ for every instruction set, and what lowers a network to them."""
