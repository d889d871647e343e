"""What is kept when the cache is full: priorities (pure), the ledger of what is held, and the limits."""
