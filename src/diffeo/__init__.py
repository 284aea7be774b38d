"""diffeo: normalizing flows."""
