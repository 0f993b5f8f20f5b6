"""The demo: a small shop whose handlers fail, and the ledger of what became of every letter."""

from uno.event_bus.dead_letter.demo.run import run_demo

__all__ = ["run_demo"]
