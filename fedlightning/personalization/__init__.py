"""Fine-tuning for each client, and personal models as files."""
