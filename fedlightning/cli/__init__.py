"""The parts of ``python -m fedlightning`` that surround :class:`fedlightning.cli.federated_cli.federated_cli.FederatedCLI`.

In the order in which a command passes through them:

- ``usage``, ``arguments``, ``recipes``, ``strict_yaml``: help, the command, its config files. They
  do not need torch, so that a misspelt file name is answered at once.
- ``parser``, ``references``: what jsonargparse and OmegaConf make of files and options.
- ``complaints``, ``known_names``, ``wording``, ``explain``, ``blame``: what is wrong with options.
- ``trainer_flags``, ``run_names``, ``checkpoint_paths``: options that are refused, or looked up.
- ``named_classes``, ``check``: which classes a config names, and whether it would be accepted.
- ``run_watch``: what a run was doing when it ended, and what it leaves.
- ``checkpoint_faults``, ``failures``, ``terminal``: exit codes, and what is shown.
"""
