"""Cache of latents: finds, stores and evicts entries in a vector index and an object store."""

import os

# More threads than one slow a search down: they wait for each other, and for those of other services.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
