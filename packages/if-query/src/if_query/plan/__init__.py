"""What a command will take before it runs: memory, disk and time, stage by stage."""
