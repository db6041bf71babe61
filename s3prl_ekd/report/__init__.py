"""Plots and the self-contained HTML page."""
