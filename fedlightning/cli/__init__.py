"""``python -m fedlightning``: commands, configs, one-line errors, exit codes.

In the order in which a command passes through them:

- ``usage``, ``config/command``, ``config/recipes``, ``config/strict_yaml``: help, the command, its
  config files. They do not need torch, so that a misspelt file name is answered at once.
- ``parser``, ``config/references``: what jsonargparse and OmegaConf make of files and options.
- ``diagnostics``: what is wrong with options.
- ``run_arguments``: options that are refused, or looked up.
- ``config/class_names``, ``check``: which classes a config names, and whether it would be accepted.
- ``federated_cli``: the command that runs.
- ``run_watch``: what a run was doing when it ended, and what it leaves.
- ``exit_codes``, ``terminal``: exit codes, and what is shown.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FederatedCLI", "module_from_run"]


def __getattr__(name: str) -> Any:
    """Import the two public names when they are first used: both of them need torch."""
    if name == "FederatedCLI":
        from fedlightning.cli.federated_cli import FederatedCLI

        return FederatedCLI
    if name == "module_from_run":
        from fedlightning.cli.export import module_from_run

        return module_from_run
    raise AttributeError(f"module 'fedlightning.cli' has no attribute {name!r}")
