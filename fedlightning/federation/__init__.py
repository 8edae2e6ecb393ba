"""A round: whose turn it is, what a client does, what the server merges; and the settings."""

from fedlightning.federation.settings import Federation

__all__ = ["Federation"]
