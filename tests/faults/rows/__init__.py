"""The rows of the fault matrix, and the pairs that find most."""
