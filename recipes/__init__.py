"""Recipes: what made the embedded teachers and the tables of docs/results.md. Not part of the wheel."""
