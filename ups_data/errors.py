"""The one error a user ever sees: a sentence, not a traceback."""


class UpsDataError(Exception):
    """Something the user can mend.

    The message is one sentence: what happened, where (file, key, got, expected), and what to do.
    Stage scripts print it to standard error and exit with status 1.
    """
