"""Everything that relies on Lightning's private names, and nothing else."""
