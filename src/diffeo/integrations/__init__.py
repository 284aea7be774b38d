"""Adapters to other libraries, each optional: nothing of diffeo needs them."""
