"""A run whose clients are elsewhere: the server's half, the node's half, and what they say.

Nothing here knows how messages travel: :class:`~fedlightning.deployment.messages.Nodes` is asked,
and something answers. :mod:`fedlightning.flower` lets Flower carry them.
"""
