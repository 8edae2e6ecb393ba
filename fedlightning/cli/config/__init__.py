"""Configs and options: files, references, short names, overrides."""
