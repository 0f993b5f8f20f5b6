"""A queue that is reached through a service, over HTTP: what both sides say to each other, and the side that asks."""
