"""TransformerLens and nnsight beside each other: one set of module names for any family."""
