"""An unmodified LightningModule gives here what plain Lightning gives, idiom by idiom.

``idioms/__init__.py`` has the one table of idioms. Right values come from ``pl.Trainer`` and a few
lines of arithmetic (``plain.py``); ``comparison.py`` lists where ``FederatedTrainer`` has others.
``python -m tests.lightning_parity.table`` prints the outcome as a table.
"""
