"""The parts of ``python -m fedlightning`` that surround :class:`fedlightning.cli.FederatedCLI`.

In the order in which a command passes through them:

- ``usage``, ``arguments``, ``recipes``, ``strict_yaml``: help, the command, its config files. They
  do not need torch, so that a misspelt file name is answered at once.
- ``parser``, ``references``: what jsonargparse and OmegaConf make of files and options.
- ``complaints``, ``known_names``, ``explain``, ``blame``: what is wrong with an option, in a line.
- ``checkpoint_paths``, ``run_watch``: which checkpoint, and what a run was doing when it ended.
- ``failures``, ``terminal``: exit codes, and what is shown.
"""
