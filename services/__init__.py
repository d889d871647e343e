"""Chorus services."""
