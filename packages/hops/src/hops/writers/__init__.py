"""Writers of documents.  :mod:`hops.writers.offline` needs no network and no model."""
