"""Fine-tuning a head on features that the body computes once."""
