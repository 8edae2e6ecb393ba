"""Who a node is to other nodes: its own signing key, and the public keys of all clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlightning.errors import ConfigError
from fedlightning.privacy.cryptography_package import cryptography_module

__all__ = ["Identity", "read_identity", "write_keys"]


@dataclass(frozen=True)
class Identity:
    """A node's keys.

    Args:
        key: Its private key; ``sign(data)`` signs.
        known: Every client's public key, by client; ``verify(signature, data)`` raises
            ``cryptography.exceptions.InvalidSignature``.
    """

    key: Any
    known: Mapping[int, Any]


class _Signer:
    """An ECDSA key with Ed25519's interface."""

    def __init__(self, key: Any, algorithm: Any) -> None:
        self._key, self._algorithm = key, algorithm

    def sign(self, data: bytes) -> bytes:
        signature: bytes = self._key.sign(data, self._algorithm)
        return signature

    def verify(self, signature: bytes, data: bytes) -> None:
        self._key.verify(signature, data, self._algorithm)


def read_identity(key: Path, peers: Path, names: Sequence[str], client: int) -> Identity:
    """Read a node's private key and the public keys of all clients, in OpenSSH's format.

    They may be those with which the nodes log in to the server (NIST curves), or Ed25519.

    Args:
        key: File of the private key, without a passphrase.
        peers: Folder of the public keys: ``node-NAME.pub``.
        names: The clients as their files are named, by number.
        client: Who this node is.

    Raises:
        ConfigError: A file is missing or no such key, two clients have one key, or the private key
            is not that of the client's public one.
    """
    load = _serialization()
    own = _read(key, lambda data: load.load_ssh_private_key(data, None))
    files = [peers / f"node-{name}.pub" for name in names]
    public = [_read(path, load.load_ssh_public_key) for path in files]
    raw = [_raw(each) for each in public]
    for number, content in enumerate(raw):
        if (first := raw.index(content)) != number:
            raise ConfigError(f"{files[number]} is the key of {files[first].name}, too.")
    if _raw(own.public_key()) != raw[client]:
        raise ConfigError(
            f"node-config key={str(key)!r} is not the private key of {files[client]}, the public "
            "one of this node's client."
        )
    return Identity(_signer(own), {c: _signer(each) for c, each in enumerate(public)})


def write_keys(folder: Path, names: Sequence[str]) -> None:
    """Make a pair of keys for each client: ``node-NAME``, which is secret, and ``node-NAME.pub``.

    Args:
        folder: Where they go.
        names: The clients as their files are named.
    """
    load, ed25519 = _serialization(), cryptography_module("hazmat.primitives.asymmetric.ed25519")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        key = ed25519.Ed25519PrivateKey.generate()
        secret = folder / f"node-{name}"
        secret.touch(mode=0o600)
        secret.write_bytes(
            key.private_bytes(load.Encoding.PEM, load.PrivateFormat.OpenSSH, load.NoEncryption())
        )
        (folder / f"node-{name}.pub").write_bytes(
            key.public_key().public_bytes(load.Encoding.OpenSSH, load.PublicFormat.OpenSSH)
        )


def _read(path: Path, load: Any) -> Any:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: {error}. Make a pair by ssh-keygen -t ecdsa -b 384.") from error


def _raw(public: Any) -> bytes:
    load = _serialization()
    data: bytes = public.public_bytes(load.Encoding.OpenSSH, load.PublicFormat.OpenSSH)
    return data


def _signer(key: Any) -> Any:
    ec = cryptography_module("hazmat.primitives.asymmetric.ec")
    ed25519 = cryptography_module("hazmat.primitives.asymmetric.ed25519")
    if isinstance(key, (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)):
        return _Signer(key, ec.ECDSA(cryptography_module("hazmat.primitives.hashes").SHA384()))
    if isinstance(key, (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey)):
        return key
    raise ConfigError(f"keys must be ECDSA or Ed25519, got {type(key).__name__}.")


def _serialization() -> Any:
    return cryptography_module("hazmat.primitives.serialization")
