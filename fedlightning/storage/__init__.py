"""Everything on disk. Import from the modules: most of them do not import torch, which is slow."""
