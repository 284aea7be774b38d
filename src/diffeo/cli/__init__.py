"""The command line: parses, calls ``diffeo.commands``, prints. Nothing heavy is imported before a command runs."""

from diffeo.cli.main import main

__all__ = ["main"]
