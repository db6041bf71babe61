"""Corpora and manifests -> the layouts that the four tasks read; the synthetic demo corpus."""
