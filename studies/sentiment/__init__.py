"""Sentiment: sentences whose verdict is known."""
