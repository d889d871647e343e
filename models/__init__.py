"""Models that ship with Chorus."""
