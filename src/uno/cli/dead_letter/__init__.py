"""`uno dead-letter …`: one file a group of commands."""
