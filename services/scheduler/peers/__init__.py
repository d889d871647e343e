"""Clients of the other services, one typed client each, and their health."""
