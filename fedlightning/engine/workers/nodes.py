"""What torchrun, SLURM or the environment say of the nodes; the network interface to others."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from fedlightning.errors import ConfigError

__all__ = ["World", "interface_towards", "launched", "nodes_and_devices", "on_another_node"]

_RANKS_OF_A_NODE = ("GROUP_RANK", "SLURM_NODEID", "NODE_RANK")
_ELSEWHERE = "192.0.2.1"  # of TEST-NET-1 (RFC 5737): a route towards it is the default route


@dataclass(frozen=True)
class World:
    """What an external launcher has started.

    Args:
        launcher: Its name.
        num_nodes: Number of nodes.
        devices: Number of processes on each of them.
    """

    launcher: str
    num_nodes: int
    devices: int


def launched(environment: Mapping[str, str] | None = None) -> World | None:
    """Return what torchrun or SLURM has started; ``None`` if neither has started this process.

    Args:
        environment: Environment variables; by default this process's.

    Example:
        >>> launched({"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "x"})
        World(launcher='torchrun', num_nodes=2, devices=1)
    """
    known = os.environ if environment is None else environment
    elastic = (
        TorchElasticEnvironment.detect() if environment is None else "TORCHELASTIC_RUN_ID" in known
    )
    with contextlib.suppress(KeyError, ValueError):
        if elastic:
            return World("torchrun", int(known["GROUP_WORLD_SIZE"]), int(known["LOCAL_WORLD_SIZE"]))
        if environment is not None or SLURMEnvironment.detect():
            nodes = int(known.get("SLURM_NNODES", "1"))
            return World("SLURM", nodes, int(known["SLURM_NTASKS"]) // nodes)
    return None


def nodes_and_devices(num_nodes: Any, devices: Any) -> tuple[Any, Any]:
    """Return how many nodes and workers per node a run has, where a launcher has decided it.

    Args:
        num_nodes: ``trainer.num_nodes``; ``auto`` and 1, the default, are the launcher's number.
        devices: ``trainer.devices``; ``auto``, 1 and ``None`` are the launcher's number.

    Returns:
        Both; without a launcher as they are, one node for ``auto``.

    Raises:
        ConfigError: Another number is asked for than the launcher has started.
    """
    world = launched()
    if world is None:
        return 1 if num_nodes == "auto" else num_nodes, devices
    for name, given, started in (
        ("num_nodes", num_nodes, world.num_nodes),
        ("devices", devices, world.devices),
    ):
        number = int(given) if isinstance(given, str) and given.isdecimal() else given
        if isinstance(number, int) and number not in (-1, 1, started):
            raise ConfigError(
                f"trainer.{name}={given!r}, but {world.launcher} has started {world.num_nodes} "
                f"node(s) with {world.devices} process(es) each; leave trainer.{name} at auto."
            )
    return world.num_nodes, devices if isinstance(devices, list) else world.devices


def on_another_node(num_nodes: Any) -> bool:
    """Whether this process is not on the first node, which reads checkpoints for all.

    Args:
        num_nodes: ``trainer.num_nodes``, as given.

    Example:
        >>> on_another_node(1)
        False
    """
    number, _ = nodes_and_devices(num_nodes, None)
    return isinstance(number, int) and number > 1 and _node_rank() > 0


def _node_rank() -> int:
    """Return the number of this node, as its launcher says before the nodes know each other."""
    for name in _RANKS_OF_A_NODE:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def interface_towards(address: str) -> str | None:
    """Return the network interface through which this node reaches another, or ``None``.

    Gloo offers the others the address that this machine's own name resolves to, which is 127.0.1.1
    on Debian. The route to the first node tells the right one.

    Args:
        address: The first node's name or address.

    Example:
        >>> interface_towards("127.0.0.1")
        'lo'
    """
    local = _local_address(address)
    if local is not None and local.startswith("127.") and not _means_this_machine(address):
        local = _local_address(_ELSEWHERE)  # a machine's own name that resolves to the loopback
    if local is None:
        return None
    return next((name for name, known in _interfaces().items() if known == local), _loopback(local))


def _means_this_machine(address: str) -> bool:
    return address == "localhost" or address.startswith("127.")


def _local_address(address: str) -> str | None:
    """Return the IPv4 address from which packets to ``address`` would be sent; sends none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _loopback(local: str) -> str | None:
    return "lo" if local.startswith("127.") and "lo" in _interfaces() else None


def _interfaces() -> dict[str, str]:
    """Return the IPv4 address of each interface that has one (Linux)."""
    try:
        import fcntl
    except ImportError:
        return {}
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking.fileno(), 0x8915, request)  # SIOCGIFADDR
                found[name] = socket.inet_ntoa(answer[20:24])
    return found
