"""The JSON files of LEAF: FEMNIST, Shakespeare, Sent140, and the like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from fedlightning.datamodules.datasets import ClientDatasets
from fedlightning.errors import ConfigError, DataError

__all__ = ["LEAF"]


class LEAF(ClientDatasets):
    """Users in ``root/train/*.json`` and ``root/test/*.json``, as LEAF's scripts write them.

    A file has ``users``, a list of names, and ``user_data``, by name ``{"x": [...], "y": [...]}``.

    Args:
        root: The folder with ``train`` and, unless each user's examples are to be divided,
            ``test``: LEAF's ``data``.
        shape: Shape of an input, for lists of numbers that are images, such as (1, 28, 28).
        encode: Makes an input of an entry of ``x``, such as token ids of a text; None takes lists
            of numbers as they are, float32.
        encode_label: Makes a label of an entry of ``y``, such as a character's number; None takes
            integers as they are.
        min_samples: Users with fewer training examples are left out.
        kwargs: ``split``, ``batch_size``, ``collate``, ...: see :class:`ClientDatasets`.

    Raises:
        ConfigError: ``root`` has no such files.
        DataError: A file cannot be read, or has another form, or two have the same user.

    Example:
        >>> root = getfixture("tmp_path")
        >>> users = {"f0001": {"x": [[0.0] * 4, [1.0] * 4], "y": [0, 1]}}
        >>> for part in ("train", "test"):
        ...     (root / part).mkdir()
        ...     text = json.dumps({"users": ["f0001"], "num_samples": [2], "user_data": users})
        ...     _ = (root / part / "all.json").write_text(text)
        >>> data = LEAF(root, shape=(1, 2, 2), batch_size=2)
        >>> data.setup()
        >>> data.client_names, [x.shape for x, y in data.batches(0, "test")]
        (('f0001',), [torch.Size([2, 1, 2, 2])])

    Reference:
        Caldas et al. LEAF: A Benchmark for Federated Settings. 2018.
        https://arxiv.org/abs/1812.01097
    """

    def __init__(
        self,
        root: str | Path,
        shape: tuple[int, ...] | None = None,
        encode: Callable[[Any], Any] | None = None,
        encode_label: Callable[[Any], int] | None = None,
        min_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        train, test = (_users(Path(root) / part) for part in ("train", "test"))
        if train is None:
            raise ConfigError(f"root={root} has no train/*.json, as LEAF's scripts write them")

        def pair(user: Any) -> tuple[Any, np.ndarray]:
            labels = [y if encode_label is None else encode_label(y) for y in user["y"]]
            if encode is not None:
                return [encode(x) for x in user["x"]], np.array(labels)
            inputs = np.array(user["x"], np.float32)
            return inputs.reshape(-1, *shape) if shape is not None else inputs, np.array(labels)

        kept = {name: user for name, user in train.items() if len(user["y"]) >= min_samples}
        if not kept:
            raise DataError(f"no user in {root} has min_samples={min_samples} examples; lower it")
        if test is not None and (others := sorted(set(test) - set(train))):
            rank_zero_warn(
                f"{root}: {len(others):,} users have test examples and none to train on, and are "
                f"left out: {', '.join(others[:5])}"
            )
        try:
            trained = {name: pair(user) for name, user in kept.items()}
            tested = None
            if test is not None:
                tested = {
                    name: pair(test[name]) if name in test else _empty(trained[name])
                    for name in kept
                }
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{root}: a user's x and y cannot be made arrays ({error}); text needs encode, and "
                "encode_label where labels are not numbers"
            ) from error
        super().__init__(trained, tested, **kwargs)


def _empty(pair: tuple[Any, np.ndarray]) -> tuple[Any, np.ndarray]:
    return pair[0][:0], pair[1][:0]


def _users(folder: Path) -> dict[str, Any] | None:
    """Return every user's examples in the files of a folder; None if there are none."""
    files = sorted(folder.glob("*.json"))
    if not files:
        return None
    found: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            listed = content["users"]
            users = {name: content["user_data"][name] for name in listed}
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{path} is not a file of LEAF: it needs users and user_data "
                f"({type(error).__name__}: {error})"
            ) from error
        for name, own in users.items():
            if name in found:
                raise DataError(
                    f"user {name!r} is in {places[name]} and in {path}: LEAF's scripts write each "
                    "user once; merge the two, or remove one of the files"
                )
            found[name], places[name] = own, path
    return found
