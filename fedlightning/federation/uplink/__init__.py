"""Updates in fewer bytes: what a client would send, and what the server would read."""

from fedlightning.core.messages import num_bytes
from fedlightning.federation.uplink.compression import (
    Compression,
    Encoded,
    decode,
)
from fedlightning.federation.uplink.int8 import Int8
from fedlightning.federation.uplink.topk import TopK

__all__ = ["Compression", "Encoded", "Int8", "TopK", "decode", "num_bytes"]
