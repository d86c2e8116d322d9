"""Influence queries for Hugging Face causal language models."""
