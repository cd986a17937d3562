"""Which network, at which point of its training: column two of Table 1."""
