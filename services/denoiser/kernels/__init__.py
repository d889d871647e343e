"""The amplified attention kernel: reference, Triton source, PyTorch operator and compiled form."""
