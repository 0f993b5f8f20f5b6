"""The command line of uno."""
