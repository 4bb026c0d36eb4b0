"""`python -m models.executors`: the process in which an executor is tried; see verify.py."""

import sys

from models.executors.verify import main

sys.exit(main())
