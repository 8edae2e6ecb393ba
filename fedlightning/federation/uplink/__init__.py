"""Updates in fewer bytes: what a client would send, and what the server would read."""

from fedlightning.federation.settings.uplink.compression import Compression, Encoded, decode, num_bytes
from fedlightning.federation.settings.uplink.int8 import Int8
from fedlightning.federation.settings.uplink.topk import TopK

__all__ = ["Compression", "Encoded", "Int8", "TopK", "decode", "num_bytes"]
