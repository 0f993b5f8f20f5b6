"""uno: a platform for event-driven services."""
