"""The transformer, its positions, the text that it reads, and the sampler."""
