"""Without the extra ``flower`` its package cannot be imported, and so has no examples to run."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("flwr") is not None else ["fedlightning/flower/*"]
