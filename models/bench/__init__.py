"""python -m models bench: runtimes side by side, on a CPU and on a GPU."""
