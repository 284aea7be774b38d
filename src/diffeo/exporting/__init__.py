"""Runs as programs that need no diffeo: flow and preprocessing as plain operations, in files of other runtimes."""
