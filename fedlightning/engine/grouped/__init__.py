"""Several clients trained in one kernel."""
