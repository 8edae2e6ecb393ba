"""``watch``: a live page of runs under way, from their folders alone."""
