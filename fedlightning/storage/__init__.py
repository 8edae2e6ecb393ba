"""Everything on disk. Import from the files; most of them do without torch, and start at once."""
