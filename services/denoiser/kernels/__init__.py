"""Amplified attention kernel: reference, Triton source, PyTorch operator and PTX compiled ahead of time."""
