"""Replays of numeric references through the public classes, one module per system.

A module ``NAME.py`` has ``replay(reference)`` for the files ``NAME_*.json``.
"""
