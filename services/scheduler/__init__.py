"""The public API: owns jobs, their order and their plan."""
