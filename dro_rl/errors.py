"""Errors that are the user's to mend: one message, exit code 2, no traceback."""


class UserError(Exception):
    """Bad input. The message names the file, key or example and the remedy."""
