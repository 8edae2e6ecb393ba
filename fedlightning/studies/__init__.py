"""``python -m fedlightning compare`` and ``report``: a study of several algorithms.

In the order in which a study passes through them:

- ``study``, ``overlay``, ``plan``: the study file, and the runs that it means.
- ``validation``: whether each run's config would be accepted.
- ``run_state``, ``study_lock``: what is known of a run, and who may work in the study's folder.
- ``processes``, ``progress``, ``compare_command``: running what is left to run.
- ``report_command`` and what it imports: tables, tests, figures and one HTML file.
"""
