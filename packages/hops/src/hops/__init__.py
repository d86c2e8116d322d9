"""The HOPS benchmark."""
