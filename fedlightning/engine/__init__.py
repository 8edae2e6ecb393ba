"""How rounds are executed inside Lightning."""
