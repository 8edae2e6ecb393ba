"""The influence of single clients on the global model, estimated while it is trained."""
