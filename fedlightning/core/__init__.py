"""What the rest is built of: states, parts, random streams, messages; no Lightning, no files."""
