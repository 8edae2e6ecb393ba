"""Checks of the machine, before a run creates a folder or starts a worker."""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytorch_lightning as pl
import torch.distributed as dist

from fedlightning.engine._lightning.trainer_hooks import wandb_settings
from fedlightning.engine.workers.strategy import FederatedDDPStrategy
from fedlightning.errors import EnvironmentFailure

__all__ = ["check_environment", "check_folder", "check_port", "check_wandb"]

_OFFLINE = {"offline", "dryrun", "disabled", "shared"}
_WAY_OUT = "WANDB_MODE=offline logs without key and network"
_SECONDS = 5.0


def check_environment(trainer: pl.Trainer) -> None:
    """Refuse a run that could not write its files, connect its workers or reach its loggers.

    Args:
        trainer: The trainer, before it runs.

    Raises:
        EnvironmentFailure: A check fails.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for folder in _folders(trainer):
        check_folder(folder)
    strategy = trainer.strategy
    if isinstance(strategy, FederatedDDPStrategy) and trainer.world_size > 1:
        cluster = strategy.cluster_environment
        ours = cluster is None or not cluster.creates_processes_externally
        check_port(os.environ.get("MASTER_PORT"), listens=ours and not dist.is_initialized())
    for logger in trainer.loggers:
        if (settings := wandb_settings(logger)) is not None:
            check_wandb(settings)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be created or written to; create nothing.

    Raises:
        EnvironmentFailure: The folder, or the nearest one above that exists, is not writable.

    Example:
        >>> check_folder(getfixture("tmp_path") / "runs" / "version_0")
    """
    path = folder.absolute()
    # os.path, because a Path raises where a folder above is not readable
    present = next((place for place in (path, *path.parents) if os.path.exists(place)), path)
    if not present.is_dir() or os.access(present, os.W_OK | os.X_OK):
        return  # a file in its place is reported when the folder is created
    way_out = "choose another trainer.default_root_dir."
    if present == path:
        raise EnvironmentFailure(f"{folder} is not writable; {way_out}")
    raise EnvironmentFailure(f"cannot create {folder}: {present} is not writable; {way_out}")


def check_port(given: str | None, listens: bool = True) -> None:
    """Refuse a port that workers could not use.

    Args:
        given: The value of ``MASTER_PORT``; ``None`` means any free port.
        listens: Whether this process will listen there.

    Raises:
        EnvironmentFailure: It is not a port, or it is in use.

    Example:
        >>> check_port("70000")
        Traceback (most recent call last):
        fedlightning.errors.EnvironmentFailure: MASTER_PORT=70000 is not a port (1..65535); ...
    """
    if given is None:
        return
    way_out = "unset MASTER_PORT to use any free port"
    if not given.isdecimal() or not 1 <= int(given) <= 65535:
        raise EnvironmentFailure(
            f"MASTER_PORT={given} is not a port (1..65535); choose one that is not in use, or "
            f"{way_out}."
        )
    if not listens:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            if os.name == "posix":  # a port that a run has just released is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("", int(given)))
            probe.listen()
    except PermissionError as error:
        raise EnvironmentFailure(
            f"port {given} (MASTER_PORT) cannot be opened: {error.strerror}; choose one above "
            f"1023 that is not in use, or {way_out}."
        ) from error
    except OSError as error:
        raise EnvironmentFailure(
            f"port {given} (MASTER_PORT) is in use: {error.strerror}; choose another one, or "
            f"{way_out}."
        ) from error


def check_wandb(settings: dict[str, Any]) -> None:
    """Refuse a W&B run without key or network: it would wait, and fail later.

    The package itself knows its server and its key; it may prompt for the latter.

    Args:
        settings: The arguments of ``wandb.init``.

    Raises:
        EnvironmentFailure: The package, a key or the network is missing.
    """
    try:
        import wandb
    except ImportError as error:
        raise EnvironmentFailure(
            "trainer.logger: the package wandb is missing: pip install fedlightning[wandb]."
        ) from error
    known = wandb.setup().settings
    modes = {settings.get("mode"), os.environ.get("WANDB_MODE"), known.mode}
    if modes & _OFFLINE or wandb.run is not None:
        return
    try:
        with socket.create_connection(_first_hop(known.base_url), timeout=_SECONDS):
            pass
    except OSError as error:
        raise EnvironmentFailure(
            f"wandb: {known.base_url} cannot be reached ({error.strerror or error}); {_WAY_OUT}, "
            "and `wandb sync` uploads later."
        ) from error
    if getattr(settings.get("settings"), "api_key", None):
        return
    try:
        wandb.login()
    except Exception as error:
        raise EnvironmentFailure(f"wandb: {error} Or {_WAY_OUT}.") from error


def _folders(trainer: pl.Trainer) -> Iterator[Path]:
    """Yield the folders that loggers and callbacks write to."""
    for logger in trainer.loggers:
        place = getattr(logger, "root_dir", None) or logger.save_dir
        if isinstance(place, (str, Path)) and "://" not in str(place):
            yield Path(place)
    for callback in trainer.checkpoint_callbacks:
        place = getattr(callback, "dirpath", None)
        if isinstance(place, (str, Path)) and "://" not in str(place):
            yield Path(place)
    if not trainer.loggers and trainer.checkpoint_callback is not None:
        yield Path(trainer.default_root_dir)


def _first_hop(url: str) -> tuple[str, int]:
    """Return host and port of a server, or of the proxy in front of it."""
    target = urlsplit(url)
    host = target.hostname or url
    proxy = urllib.request.getproxies().get(target.scheme or "https")
    if proxy and not urllib.request.proxy_bypass(host):
        target = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host = target.hostname or host
    return host, target.port or (80 if target.scheme == "http" else 443)
