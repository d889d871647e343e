"""Engines built ahead of time: building, storing, selecting and verifying them; `chorus engine`."""
