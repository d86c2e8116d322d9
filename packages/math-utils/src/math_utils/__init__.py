"""Pure PyTorch mathematics of training-data attribution."""
