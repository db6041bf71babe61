"""Pretraining data: length tables, batches, distortions, the target cache."""
