"""Indirect object identification: prompts and the roles of heads."""
