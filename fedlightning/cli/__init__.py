"""``python -m fedlightning``: commands, configs, one-line errors, exit codes.

In the order in which a command passes through them:

- ``usage``, ``config/command``, ``config/recipes``, ``config/strict_yaml``: help, the command, its
  config files. They do not need torch, so a misspelt file name is answered at once.
- ``parser``, ``config/references``: jsonargparse and OmegaConf read files and options.
- ``diagnostics``: one-line errors about options.
- ``run_arguments``: options that are checked or resolved before the run.
- ``config/class_names``, ``check``: the classes a config names, and whether it would be accepted.
- ``federated_cli``: runs the command.
- ``run_watch``: what a run was doing when it failed, and what it has saved.
- ``exit_codes``, ``terminal``: exit codes and console output.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FederatedCLI", "module_from_run"]


def __getattr__(name: str) -> Any:
    """Import the two public names on first use: both need torch."""
    if name == "FederatedCLI":
        from fedlightning.cli.federated_cli import FederatedCLI

        return FederatedCLI
    if name == "module_from_run":
        from fedlightning.cli.rebuilding import module_from_run

        return module_from_run
    raise AttributeError(f"module 'fedlightning.cli' has no attribute {name!r}")
