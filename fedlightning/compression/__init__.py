"""Updates in fewer bytes: what a client would send, and what the server would read."""

from fedlightning.compression.base import Compression, Encoded, decode, num_bytes
from fedlightning.compression.int8 import Int8
from fedlightning.compression.topk import TopK

__all__ = ["Compression", "Encoded", "Int8", "TopK", "decode", "num_bytes"]
