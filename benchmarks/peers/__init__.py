"""Adapters that give every library the same work; each runs in its library's own environment."""
