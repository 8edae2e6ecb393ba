"""Messages as Flower's records, and back: the only place that names fields on the wire.

Tensors travel as arrays of their own bits, so what arrives is what was sent: bfloat16 and float8,
which NumPy lacks, as unsigned integers, weights laid out with channels last in that layout, sparse
tensors as indices and values. Everything else is one JSON text.

What an algorithm keeps at clients is refused here, on both sides, whatever else may be wrong.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedlightning.algorithms.algorithm import Algorithm
from fedlightning.core.messages import ClientUpdate, Down, belongs_to
from fedlightning.core.metrics import LogFlags
from fedlightning.core.state import State
from fedlightning.deployment.messages import Answer, Order, Passport, Phase, Receipt, TrainOrder
from fedlightning.engine.workers.cohort_exchange import Trained
from fedlightning.errors import FederationError
from fedlightning.federation.failures import ClientFailure
from fedlightning.federation.jobs import Job
from fedlightning.personalization.results import PersonalResult

__all__ = [
    "Rules",
    "decode_answer",
    "decode_order",
    "decode_passport",
    "encode_answer",
    "encode_order",
    "encode_passport",
]

_TEXT, _STATE, _EXTRAS, _PAYLOAD = "text", "state", "extras", "payload"
_BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
_PLAIN_UPDATE = (
    "client", "num_examples", "steps", "metrics", "bytes_up", "bytes_down", "version", "unsent"
)  # fmt: skip
_PLAIN_TRAIN = (
    "round", "updates", "hyperparameters", "planned_steps", "run", "after", "durable"
)  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What may travel.

    Args:
        kept: Keys of the model that the algorithm keeps at clients: never sent.
        down: Names of the extras that it declares from the server to clients.
        up: Names of those from clients to the server.

    Example:
        >>> rules = Rules(kept=frozenset({"head.weight"}))
        >>> rules.check({"body.weight": torch.ones(1)}, {}, ())
        >>> rules.check({"head.weight": torch.ones(1)}, {}, ())
        Traceback (most recent call last):
        fedlightning.errors.FederationError: head.weight stays with the clients ...
    """

    kept: frozenset[str] = frozenset()
    down: frozenset[str] = frozenset()
    up: frozenset[str] = frozenset()

    @classmethod
    def of(cls, algorithm: Algorithm, kept: Collection[str]) -> Rules:
        """Return the rules of an algorithm.

        Args:
            algorithm: Its hooks declare extras.
            kept: The keys of the model that clients keep.
        """
        messages = [message for hook in algorithm.hooks for message in hook.messages]
        return cls(
            frozenset(kept),
            frozenset(message.name for message in messages if isinstance(message, Down)),
            frozenset(message.name for message in messages if not isinstance(message, Down)),
        )

    def check(
        self, state: Mapping[str, Tensor], extras: Mapping[str, Tensor], names: Collection[str]
    ) -> None:
        """Refuse tensors that must not travel.

        Args:
            state: Tensors of the model.
            extras: Tensors beside it.
            names: The extras that are declared for this direction.

        Raises:
            FederationError: One must not; it is named.
        """
        if (key := next(iter(sorted(self.kept & state.keys())), None)) is not None:
            raise FederationError(
                f"{key} stays with the clients under this algorithm, and was about to be sent; "
                "nothing has been sent. A hook or callback has put it into the shared part."
            )
        for key in extras:
            if not any(belongs_to(key, name) for name in names):
                raise FederationError(
                    f"{key} is not declared by the algorithm, and was about to be sent; nothing "
                    "has been sent. Add it to the messages of the hook that sends it."
                )


# -- orders ------------------------------------------------------------------------------------


def encode_order(order: Order, rules: Rules) -> RecordDict:
    """Return an order as records.

    Raises:
        FederationError: It has something that must not travel.
    """
    train = order.train
    extras = train.extras if train is not None else {}
    rules.check(order.state, extras, rules.down)
    text: dict[str, Any] = {
        "client": order.client,
        "round": order.round,
        "commits": order.commits,
        "measure": order.measure,
        "per_class": order.per_class,
        "personalize": order.personalize,
        "kept": order.kept and asdict(order.kept),
        "phase": order.phase and {**asdict(order.phase), "content": _texts(order.phase.content)},
    }
    if train is not None:
        text["train"] = {name: getattr(train, name) for name in _PLAIN_TRAIN}
        text["job"] = asdict(train.job)
    return _records(text, {_STATE: order.state, _EXTRAS: extras})


def decode_order(records: RecordDict) -> Order:
    """Return the order that :func:`encode_order` has written."""
    text, tensors = _read(records)
    train = None
    if "train" in text:
        plain = text.pop("train")
        plain["hyperparameters"] = [
            [{name: _hashable(value) for name, value in group.items()} for group in groups]
            for groups in plain["hyperparameters"]
        ]
        train = TrainOrder(job=Job(**text.pop("job")), extras=tensors[_EXTRAS], **plain)
    kept, phase = text.pop("kept"), text.pop("phase")
    return Order(
        **{**text, "measure": tuple(text["measure"])},
        state=tensors[_STATE],
        train=train,
        kept=Receipt(**kept) if kept is not None else None,
        phase=Phase(**{**phase, "content": _bytes(phase["content"])}) if phase else None,
    )


# -- answers -----------------------------------------------------------------------------------


def encode_answer(answer: Answer, rules: Rules) -> RecordDict:
    """Return an answer as records.

    Raises:
        FederationError: It has something that must not travel.
    """
    text: dict[str, Any] = {
        "client": answer.client,
        "scores": answer.scores,
        "flags": _flags(answer.flags),
        "keeps": answer.keeps,
        "failure": answer.failure and asdict(answer.failure),
        "personal": answer.personal and asdict(answer.personal),
        "error": answer.error,
        "reply": _texts(answer.reply),
    }
    tensors: dict[str, State] = {}
    if answer.trained is not None:
        update = answer.trained.update
        rules.check(update.state, update.extras, rules.up)
        text["update"] = {name: _plain(getattr(update, name)) for name in _PLAIN_UPDATE}
        text["update_flags"] = _flags(answer.trained.flags)
        payload = {} if update.payload is None else {_PAYLOAD: update.payload}
        tensors = {_STATE: dict(update.state), _EXTRAS: dict(update.extras), _PAYLOAD: payload}
    return _records(text, tensors)


def decode_answer(records: RecordDict, rules: Rules) -> Answer:
    """Return the answer that :func:`encode_answer` has written.

    Raises:
        FederationError: It has something that must not travel.
    """
    text, tensors = _read(records)
    trained = None
    if "update" in text:
        rules.check(tensors[_STATE], tensors[_EXTRAS], rules.up)
        plain = text["update"]
        update = ClientUpdate(
            **{**plain, "unsent": tuple(plain["unsent"])},
            state=tensors[_STATE],
            extras=tensors[_EXTRAS],
            payload=tensors[_PAYLOAD].get(_PAYLOAD),
        )
        trained = Trained(update, {}, _flags_of(text["update_flags"]))
    failure, personal, error = text["failure"], text["personal"], text["error"]
    return Answer(
        client=text["client"],
        scores=text["scores"],
        flags=_flags_of(text["flags"]),
        trained=trained,
        keeps=text["keeps"],
        failure=ClientFailure(**failure) if failure is not None else None,
        personal=_personal(personal) if personal is not None else None,
        error=tuple(error) if error is not None else None,
        reply=_bytes(text["reply"]),
    )


# -- who -----------------------------------------------------------------------------------------


def encode_passport(passport: Passport) -> RecordDict:
    """Return what a node says of itself as records."""
    return _records(asdict(passport), {})


def decode_passport(records: RecordDict) -> Passport:
    """Return what :func:`encode_passport` has written.

    Raises:
        FederationError: Another version of this package has written it.
    """
    try:
        text, _ = _read(records)
        return Passport(**{field.name: text[field.name] for field in fields(Passport)})
    except (LookupError, TypeError, ValueError) as error:
        raise FederationError(
            "what the node says of itself cannot be read; install the server's versions there."
        ) from error


# -- small print ---------------------------------------------------------------------------------


def _records(text: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]]) -> RecordDict:
    layouts: dict[str, dict[str, Any]] = {}
    records: dict[str, Any] = {}
    for name, state in states.items():
        arrays: dict[str, Array] = {}
        layouts[name] = {
            key: _take_apart(f"{number}", value.detach().cpu(), arrays)
            for number, (key, value) in enumerate(state.items())
        }
        records[name] = ArrayRecord(arrays)
    content = json.dumps({"text": text, "layouts": layouts}, default=_plain)
    return RecordDict({**records, _TEXT: ConfigRecord({"json": content})})


def _read(records: RecordDict) -> tuple[dict[str, Any], dict[str, State]]:
    content = json.loads(str(records.config_records[_TEXT]["json"]))
    states = {
        name: {
            key: _put_together(f"{number}", layout, records.array_records[name])
            for number, (key, layout) in enumerate(layouts.items())
        }
        for name, layouts in content["layouts"].items()
    }
    return content["text"], states


def _take_apart(name: str, value: Tensor, arrays: dict[str, Array]) -> dict[str, Any]:
    """Put a tensor's bits into arrays; return what it takes to put it together again."""
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        _take_apart(f"{name}i", value.indices(), arrays)
        inner = _take_apart(f"{name}v", value.values(), arrays)
        return {"size": list(value.shape), "values": inner}
    kind = str(value.dtype).removeprefix("torch.")
    last = value.ndim == 4 and not value.is_contiguous()
    last = last and value.is_contiguous(memory_format=torch.channels_last)
    flat = (value.permute(0, 2, 3, 1) if last else value).contiguous()
    try:
        array = flat.numpy()
    except TypeError:  # NumPy has no such numbers
        array = flat.view(_BITS[flat.element_size()]).numpy()
    arrays[name] = Array(np.ascontiguousarray(array).reshape(array.shape))
    return {"dtype": kind, "channels_last": last}


def _put_together(name: str, layout: Mapping[str, Any], arrays: Mapping[str, Array]) -> Tensor:
    if "size" in layout:
        indices = _tensor(arrays[f"{name}i"])
        values = _put_together(f"{name}v", layout["values"], arrays)
        return torch.sparse_coo_tensor(
            indices, values, layout["size"], is_coalesced=True, check_invariants=True
        )
    value, kind = _tensor(arrays[name]), getattr(torch, layout["dtype"])
    if value.dtype != kind:
        value = value.view(kind)
    return value.permute(0, 3, 1, 2) if layout["channels_last"] else value


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array.numpy()))  # a copy, which may be written to


def _texts(content: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(value).decode() for name, value in content.items()}


def _bytes(content: Mapping[str, str]) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in content.items()}


def _flags(flags: Mapping[str, LogFlags]) -> dict[str, Any]:
    return {name: [flag.prog_bar, flag.logger] for name, flag in flags.items()}


def _flags_of(flags: Mapping[str, Any]) -> dict[str, LogFlags]:
    return {name: LogFlags(*flag) for name, flag in flags.items()}


def _personal(text: dict[str, Any]) -> PersonalResult:
    return PersonalResult(**{**text, "scores": tuple(text["scores"])})


def _plain(value: Any) -> Any:
    """Return a number as Python's own, and a tuple or mapping as JSON has it."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, np.generic):
        return value.item()
    return dict(value) if isinstance(value, Mapping) else value


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
