"""The library's callbacks, and the place for your own while you work in a clone.

Put ``mine.py`` beside this file and name it in a config: ``class_path: callbacks.mine.MyCallback``.
"""

from fedlightning.callbacks import *  # noqa: F403
from fedlightning.callbacks import __all__ as __all__
