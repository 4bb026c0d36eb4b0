"""One compute thread for tests: the networks are tiny, and results must not depend on how busy the machine is."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the worker processes that tests start
