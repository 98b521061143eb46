"""The one error that is the user's to mend, and what other errors say."""


class UserError(Exception):
    """What the user got wrong and what to do, in one sentence; command lines exit with code 2."""


def first_line(error: Exception) -> str:
    """What an error says in its first line, or else what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: Exception) -> str:
    """The same of an error that a file gave, without its number and the file's name."""
    return getattr(error, "strerror", None) or first_line(error)
