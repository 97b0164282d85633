"""The command `mesh`."""

from node.cli.app import main

__all__ = ["main"]
