"""Finished runs and studies as Python objects: tables, figures, models, a page in a notebook.

- ``run``: :class:`Run`, what a run folder says, and what can still be made of it.
- ``study``: :class:`Study`, several algorithms and seeds, as ``python -m fedlightning compare``.
- ``frames``, ``pictures``, ``html``: tables, figures and notebook pages of both.
"""

from typing import TYPE_CHECKING

from fedlightning.core.near_names import suggesting
from fedlightning.results.run import Run
from fedlightning.results.study import Study

__all__ = ["Run", "Study"]

if not TYPE_CHECKING:  # to type checkers a module with __getattr__ has every name
    __getattr__ = suggesting(__name__, __all__)
