"""Secure aggregation over a deployment: the halves of server and node."""
