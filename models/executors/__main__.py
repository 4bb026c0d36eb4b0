"""`python -m models.executors`: the process in which an executor is tried; see proof.py."""

import sys

from models.executors.proof import main

sys.exit(main())
