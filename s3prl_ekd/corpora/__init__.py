"""Corpora and manifests laid out as pretraining and the six tasks read them; the synthetic demo corpus."""
