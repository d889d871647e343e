"""Who calls, and how much a caller may send and hold open."""
