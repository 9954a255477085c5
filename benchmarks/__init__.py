"""How fast the helpers are, beside the tools that others use: `make bench`."""
