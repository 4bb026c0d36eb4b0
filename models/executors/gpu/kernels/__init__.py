"""The Triton kernels of the `triton` executor. With TRITON_INTERPRET=1 they run on a CPU.

Feature maps are dense and channels-last: a row is the channels of one position, contiguous in memory. Rows are numbered
over the batch, position by position. Strides are in elements, from one row to the next. Kernels read and write only the
rows that a row list names, see rows.py. Lists and their lengths stay on the device, and a grid is as large as the whole
map: programs beyond the end of a list return at once. So a launch never waits for the host and can be part of a CUDA
graph.
"""

from models.executors.gpu.kernels.convolution import convolve
from models.executors.gpu.kernels.exits import update_mask
from models.executors.gpu.kernels.geometry import compact_rows
from models.executors.gpu.kernels.weighted_sums import add_resampled, interpolate

__all__ = ["add_resampled", "compact_rows", "convolve", "interpolate", "update_mask"]
