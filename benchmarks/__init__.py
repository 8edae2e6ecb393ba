"""Measurements; a package, because an installed one (of Opacus) has the same name."""
