"""Attribution between checkpoints, baselines and evaluation."""
