"""The operations that must be fast."""
