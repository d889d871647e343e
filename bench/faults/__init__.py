"""Behaviour under faults: chaos scenarios under load, and the marked tests, in figures."""
