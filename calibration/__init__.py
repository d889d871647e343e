"""Calibrates a model: measures what each depth of reuse costs, for the planner."""
