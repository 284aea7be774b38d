"""From a model that is slow to sample to a fast one: methods, for the kinds of data that they suit."""
