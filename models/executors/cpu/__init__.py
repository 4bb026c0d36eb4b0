"""The sparse executor: C++ kernels for every instruction set of a CPU, and what lowers a network to them."""
