"""A compression as a setting, and the pure functions that encode, decode and make up for errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlightning.core.messages import ClientUpdate, num_bytes
from fedlightning.core.state import State, first_non_finite
from fedlightning.federation.uplink.encoding import Frame, join_frames, split_frames, unpack
from fedlightning.federation.uplink.encoding import exact as as_it_is
from fedlightning.federation.uplink.stage import UplinkContext, UplinkStage

__all__ = ["Compression", "Encoded", "decode"]

_NAME = "compression/"


@dataclass(frozen=True)
class Encoded:
    """An update as it is sent.

    Args:
        data: The bytes, all that the server needs.
        state: What the server reads in them, on the devices of what was encoded.
    """

    data: bytes
    state: State

    @property
    def num_bytes(self) -> int:
        """How many bytes are sent, keys and shapes included."""
        return len(self.data)


class Compression(UplinkStage):
    r"""How clients write their updates in fewer bytes; the last stage of ``federation.uplink``.

    ``federation.compression`` takes one, too. Extras are sent as they are.

    What is compressed is the difference from the global model, not the model: it is small, and
    zero is its natural rest. Encoding is deterministic.

    With error feedback a client adds what it could not send to its next update:

    .. math:: p_t = \Delta_t + e_t, \quad \hat\Delta_t = D(p_t), \quad e_{t+1} = p_t - \hat\Delta_t

    so nothing is lost, only late: :math:`\sum_t \hat\Delta_t + e_{T} = \sum_t \Delta_t`. It makes
    clients keep a residual as large as the update.

    Args:
        error_feedback: Whether clients do so.

    Source:
        Seide, Fu, Droppo, Li, Yu. 1-Bit Stochastic Gradient Descent and its Application to
        Data-Parallel Distributed Training of Speech DNNs. Interspeech 2014.
        https://doi.org/10.21437/Interspeech.2014-274.
        Karimireddy, Rebjock, Stich, Jaggi. Error Feedback Fixes SignSGD and other Gradient
        Compression Schemes. ICML 2019. https://arxiv.org/abs/1901.09847
    """

    def __init__(self, error_feedback: bool = True) -> None:
        self.error_feedback = error_feedback

    @abstractmethod
    def frames(self, delta: State) -> list[Frame]:
        """Return finite floating-point tensors, on the CPU, as frames with the same keys."""

    @torch.no_grad()
    def send(self, update: ClientUpdate, context: UplinkContext) -> ClientUpdate:
        """Return the update with its encoded bytes in the place of its state.

        The client keeps what is left over for its next update.
        """
        received, parameters = context.received, context.parameters
        exact = [key for key in update.state if key not in parameters]
        delta = {
            key: value - received[key] if key in parameters else value
            for key, value in update.state.items()
        }
        if self.error_feedback:
            residual = {
                key: context.kept[_NAME + key].to(value.device)
                for key, value in delta.items()
                if _NAME + key in context.kept
            }
            encoded, left = self._with_feedback(delta, residual, exact)
            data = encoded.data
            context.kept_after |= {_NAME + key: value for key, value in left.items()}
        else:
            data = self.encode(delta, exact)
        return replace(
            update,
            state={},
            payload=torch.frombuffer(bytearray(data), dtype=torch.uint8),
            bytes_up=len(data) + num_bytes(update.extras),
        )

    @torch.no_grad()
    def receive(
        self, update: ClientUpdate, received: Mapping[str, Tensor], parameters: Collection[str]
    ) -> ClientUpdate:
        """Return the update with the state that its bytes stand for."""
        assert update.payload is not None, "an update that has passed the client half"
        arrived = decode(update.payload.cpu().numpy().tobytes())
        on_device = {key: value.to(received[key].device) for key, value in arrived.items()}
        state = {
            key: received[key] + value if key in parameters else value
            for key, value in on_device.items()
        }
        return replace(update, state=state, payload=None)

    def encode(self, delta: Mapping[str, Tensor], exact: Collection[str] = ()) -> bytes:
        """Return an update as bytes.

        Args:
            delta: The update's tensors by key. Integer tensors are written as they are.
            exact: Keys of more tensors to write as they are, such as buffers: a rounded variance
                may be negative.

        Raises:
            ValueError: If a value to compress is NaN or infinite.
        """
        on_cpu = {key: value.detach().cpu() for key, value in delta.items()}
        lossy = {key: on_cpu[key] for key in _lossy(delta, exact)}
        if (bad := first_non_finite(lossy)) is not None:
            raise ValueError(f"{bad} holds a NaN or an infinity and cannot be compressed")
        frames = {frame.key: frame for frame in self.frames(lossy)}
        return join_frames(frames.get(key) or as_it_is(key, on_cpu[key]) for key in on_cpu)

    def compress(self, delta: Mapping[str, Tensor], exact: Collection[str] = ()) -> Encoded:
        """Return an update as it is sent and as it arrives.

        Args:
            delta: The update's tensors by key.
            exact: Keys of tensors to write as they are.

        Raises:
            ValueError: If a value to compress is NaN or infinite.
        """
        data = self.encode(delta, exact)
        state = {key: value.to(delta[key].device) for key, value in decode(data).items()}
        return Encoded(data, state)

    @torch.no_grad()
    def with_feedback(
        self,
        delta: Mapping[str, Tensor],
        residual: Mapping[str, Tensor],
        exact: Collection[str] = (),
    ) -> tuple[State, State, int]:
        """Compress an update together with what earlier ones of the same client have left over.

        Args:
            delta: The update's tensors by key.
            residual: What is left over from the client's last time; empty at its first.
            exact: Keys of tensors to write as they are.

        Returns:
            What the server reads, the new residual, and the number of bytes sent. The residual has
            the keys that are compressed, in float32 or, where the update is float64, in float64.

        Raises:
            ValueError: If the residual has other keys or shapes, or a value is NaN or infinite.
        """
        encoded, left = self._with_feedback(delta, residual, exact)
        return encoded.state, left, encoded.num_bytes

    @torch.no_grad()
    def _with_feedback(
        self, delta: Mapping[str, Tensor], residual: Mapping[str, Tensor], exact: Collection[str]
    ) -> tuple[Encoded, State]:
        lossy = _lossy(delta, exact)
        if residual and residual.keys() != set(lossy):
            raise ValueError(f"residual's keys differ: {sorted(residual.keys() ^ set(lossy))}")
        meant: State = {key: _wide(delta[key]) for key in lossy}
        for key, rest in residual.items():
            if rest.shape != meant[key].shape:
                raise ValueError(
                    f"residual's shapes differ: {key} is {tuple(rest.shape)}, the update's is "
                    f"{tuple(meant[key].shape)}"
                )
            meant[key] = meant[key] + rest.to(meant[key])
        if (bad := first_non_finite(meant)) is not None:
            raise ValueError(f"{bad} with its residual holds a NaN or an infinity")
        narrow = {key: _narrow(meant[key], delta[key].dtype) for key in lossy}
        encoded = self.compress(
            {key: narrow.get(key, value) for key, value in delta.items()}, exact
        )
        left = {key: meant[key] - encoded.state[key].to(meant[key].dtype) for key in lossy}
        return encoded, left


def decode(data: bytes) -> State:
    """Return the update that :meth:`Compression.encode` has written, on the CPU.

    Raises:
        ValueError: If the bytes are not an encoded update, or not all of it.
    """
    return {frame.key: unpack(frame) for frame in split_frames(data)}


def _lossy(delta: Mapping[str, Tensor], exact: Collection[str]) -> list[str]:
    return [key for key, value in delta.items() if value.is_floating_point() and key not in exact]


def _wide(value: Tensor) -> Tensor:
    """Return a tensor in the precision of residuals: what half precision drops must not be lost."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _narrow(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in its update's dtype; what is beyond its range stays in the residual."""
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype)
