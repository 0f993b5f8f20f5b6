"""The fault harness: producers and workers as processes, histories in files, an offline checker.

The rows of the fault matrix themselves are in `tests/faults`; `make faults` runs them.
"""
