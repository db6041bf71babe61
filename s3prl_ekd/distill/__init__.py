"""Targets from teacher states, and the distillation loss."""
