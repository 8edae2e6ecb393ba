"""``python -m fedlightning compare`` and ``report``: a study of several algorithms.

In the order in which a study passes through them:

- ``options``: the words of the command line.
- ``study``, ``plan``: the study file, and its runs.
- ``validation``: checks each run's config.
- ``run_state``: the state of a run, as its folder records it.
- ``runner``, ``progress``, ``compare_command``: run what is left of the study.
- ``run_reader``, ``results``, ``statistics``, ``paired_tests``: read finished runs, compare them.
- ``report_command``, ``report``: tables, tests and figures in one HTML file.
"""
