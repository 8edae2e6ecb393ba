"""``python -m fedlightning tune``: choose each variant's settings on validation data.

- ``space``: what is searched, as a study file says it.
- ``settings``: the rest of ``tune`` in a study file.
- ``trials``: the configs of trials, and what is refused before the first one.
- ``validation_values``: what a trial has measured on validation data.
- ``search``: optuna asks, is told and prunes; a journal in the output folder.
- ``results``: the table of trials, the budget, and the study with the chosen settings.
"""
