"""A language model: loading it, reading its states, changing its weights, asking it."""
