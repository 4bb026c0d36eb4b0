"""The Open Inference Protocol, version 2, over REST (`/v2`): what KServe, Triton and their clients speak."""
