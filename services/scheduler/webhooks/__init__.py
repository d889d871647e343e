"""Webhooks: signed requests that report the ends of generations to receivers of clients."""
