"""Induction heads: models trained in the chapter."""
