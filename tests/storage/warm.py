"""Runs the command line as ``python -m fedlightning`` does, from a process with all imports done.

Reads a JSON list of words and a folder from each line of stdin; forks, prints the pid of the run,
and then its exit code. Runs draw no figures here: nothing is promised of them, and drawing takes
longer than all the rest.
"""

from __future__ import annotations

import json
import os
import sys

import sklearn.datasets  # noqa: F401

import fedlightning.callbacks.personalization
import fedlightning.callbacks.run_record
import fedlightning.cli
from fedlightning.__main__ import main


def run(words: list[str], folder: str) -> int:
    """Run a command in a folder, with its output in ``out.txt`` there."""
    os.chdir(folder)
    output = os.open(
        "out.txt" if words[0] == "fit" else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = main(words)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    assert fedlightning.cli
    for module in (fedlightning.callbacks.personalization, fedlightning.callbacks.run_record):
        module.save_figure = lambda *_: None
    for line in sys.stdin:
        words, folder = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                code = run(words, folder)
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
