"""An unmodified LightningModule gives here what plain Lightning gives, idiom by idiom.

``idioms/__init__.py`` has the one table of idioms. Right values come from ``pl.Trainer`` and a few
lines of arithmetic (``plain.py``, ``by_hand`` in ``comparison.py``), never from the federation.
``python -m tests.lightning_parity.table`` prints the outcome as a table.

What is right of several clients:

- What a training step logs is averaged over a client's examples, then over the cohort's.
- What a validation or test step logs is averaged over a client's examples, then over clients, each
  counting once. A metric object that is logged may as well be that of all clients' examples.
- What a module logs at the end of a validation or test epoch is of all clients' examples, in whole
  epochs of the global model alone; of one client where a client's own model is meant.
- A client begins its turn with the global weights, fresh optimizers, and the module's other state
  as it was given to the trainer. Nothing but weights goes from turn to turn or from an evaluation
  into the model. Integers and flags among them are not averaged: the server keeps its own.
"""
