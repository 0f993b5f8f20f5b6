"""The worker: one background role a file."""
