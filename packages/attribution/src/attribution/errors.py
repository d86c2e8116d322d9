"""Errors that a user's data, model or files cause, as opposed to bugs."""


class AttributionError(ValueError):
    """What was given cannot be attributed; the message says what was expected and what arrived."""
