"""The one exception that a user's mistake raises."""


class HopsError(ValueError):
    """Input that cannot be used: the message says what was expected, what arrived, what to do.

    The command line prints it as one line on stderr and exits with status 2.
    """
