"""The one exception a user is meant to read."""


class InputError(Exception):
    """Something asked for cannot be done; the message is one line and says what to do instead."""
