"""Benchmarks: each command writes one file of bench/results."""
