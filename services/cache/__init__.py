"""The cache: the only service that touches the vector index and the object store. Loads no torch."""
