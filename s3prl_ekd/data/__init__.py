"""Pretraining data: length tables, seconds-budget batches."""
