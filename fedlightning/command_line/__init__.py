"""The parts of ``python -m fedlightning`` that surround :class:`fedlightning.cli.FederatedCLI`.

Read in the order in which a command passes through them: ``usage`` (answers that need nothing),
``arguments`` and ``recipes`` (which command, which files), ``strict_yaml`` and ``references`` (what
the files say), ``parser`` and ``explain`` (what jsonargparse makes of it), ``run_watch`` (what the
run was doing when it ended), ``failures`` (exit codes) and ``terminal`` (what is shown). None of the
first five imports torch, so that a misspelt file name is answered at once.
"""
