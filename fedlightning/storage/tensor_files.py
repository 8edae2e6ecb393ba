"""Tensors as the bytes of a safetensors file, which depend only on what the file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["metadata_of", "serialize"]

_SIZE = 8  # bytes that hold the length of the header


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors file of some tensors.

    The same tensors and metadata give the same bytes. The library writes metadata in random order,
    so a header with more than one entry is written again, with all its keys sorted.

    Args:
        tensors: Tensors by name; they may share memory, and be on any device.
        metadata: Texts by name, at least one.

    Example:
        >>> content = serialize({"weight": torch.ones(2)}, {"round": "3", "client": "7"})
        >>> metadata_of(content)
        {'client': '7', 'round': '3'}
    """
    from safetensors.torch import save

    copies = {  # the format refuses tensors that share memory
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    content: bytes = save(copies, dict(metadata))
    if len(metadata) == 1:
        return content
    header = json.dumps(json.loads(_header(content)), sort_keys=True, separators=(",", ":"))
    text = header.encode()
    text += b" " * (-len(text) % _SIZE)
    return len(text).to_bytes(_SIZE, "little") + text + content[_SIZE + len(_header(content)) :]


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file.

    Args:
        content: The bytes of the file.

    Raises:
        ValueError: They are not those of a safetensors file.
    """
    metadata: dict[str, str] = json.loads(_header(content)).get("__metadata__", {})
    return metadata


def _header(content: bytes) -> bytes:
    return content[_SIZE : _SIZE + int.from_bytes(content[:_SIZE], "little")]
