"""What `make docs` makes of the docs: pages of algorithms and of the API, notebooks, links."""
