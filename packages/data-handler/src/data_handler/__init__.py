"""Influence inside a training loop."""
