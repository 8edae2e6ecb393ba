"""What is wrong with a checkpoint that Lightning could not load."""

from __future__ import annotations

import re
import traceback

__all__ = ["what_is_wrong", "while_restoring"]

_OTHER_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[(.*?)\]\)"
    r".*?torch\.Size\(\[(.*?)\]\)",
    re.DOTALL,
)
_OTHER_KEYS = re.compile(r"((?:Missing|Unexpected) key\(s\) in state_dict: .*)")
_OBJECT = re.compile(r"Unsupported global: GLOBAL (\S+)")


def while_restoring(error: BaseException) -> bool:
    """Whether Lightning was reading a checkpoint, or putting one into model and callbacks."""
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if frame.filename.endswith("checkpoint_connector.py")]
    return any(re.search("restore|resume", name) for name in names)


def what_is_wrong(error: BaseException) -> str:
    """Return what an error in restoring a checkpoint says of it.

    Example:
        >>> what_is_wrong(KeyError("pytorch-lightning_version"))
        'not a fedlightning checkpoint: no run wrote it.'
    """
    text = str(error)
    if found := _OTHER_SHAPE.search(text):
        return f"{found[1]} is ({found[2]}) in the checkpoint, vs ({found[3]}) in the model."
    if found := _OTHER_KEYS.search(text):
        return f"it is of another network: {found[1]}"
    if found := _OBJECT.search(text):
        return f"it holds an object of {found[1]}; only tensors and plain values are loaded."
    if isinstance(error, KeyError) and "pytorch-lightning_version" in text:
        return "not a fedlightning checkpoint: no run wrote it."
    return f"it cannot be read as a checkpoint ({type(error).__name__}: {text.partition('. ')[0]})."
