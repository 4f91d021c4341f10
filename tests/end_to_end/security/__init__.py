"""Hostile clients: what they must not learn, not become, and not break."""
