"""Runs of a study in forks of the test's own process, which has torch and Lightning loaded."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from fedlightning.__main__ import main


class ForkedRun:
    """Stands in for ``subprocess.Popen`` in ``fedlightning.studies.runner``."""

    def __init__(self, words: list[str], stdout: Any, env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words[3:], stdout.fileno(), env)

    def _run(self, words: list[str], output: int, env: dict[str, str]) -> None:
        code = 1
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8")
            os.environ.update(env)
            code = main(words)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
