"""The way of an update from a client to the server: clip, add noise, compress, in any order."""

from typing import TYPE_CHECKING

from fedlightning.core.messages import num_bytes
from fedlightning.core.near_names import suggesting
from fedlightning.federation.uplink.clipping import ClipNorm, GaussianNoise, PrivateClip
from fedlightning.federation.uplink.compression import Compression, Encoded, decode
from fedlightning.federation.uplink.fixed_point import FixedPoint
from fedlightning.federation.uplink.int8 import Int8
from fedlightning.federation.uplink.stage import UplinkContext, UplinkStage
from fedlightning.federation.uplink.topk import TopK

__all__ = [
    "ClipNorm",
    "Compression",
    "Encoded",
    "FixedPoint",
    "GaussianNoise",
    "Int8",
    "PrivateClip",
    "TopK",
    "UplinkContext",
    "UplinkStage",
    "decode",
    "num_bytes",
]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
