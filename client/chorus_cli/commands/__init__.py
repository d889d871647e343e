"""The commands of `chorus`, one file for each group."""
