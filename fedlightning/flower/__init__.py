"""Flower carries a run's messages: the ``deploy`` command, and the two apps that it names.

Needs the extra ``flower`` (Python 3.11 or newer). Only the ``deploy`` command and Flower's own
processes import what is in here.
"""
