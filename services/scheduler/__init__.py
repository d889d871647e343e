"""Scheduler: serves the public API and owns jobs, their order and their plans."""
