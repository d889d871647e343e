"""Public API of the scheduler: validation, generations and the servicer."""
