"""What the engine tells the world about itself: names, and hooks over a no-op default."""
