"""The one error that is the user's to fix, what other errors say, and text from elsewhere."""


class UserError(Exception):
    """What the user got wrong and what to do, in one line; command lines exit with code 2."""


def first_line(error: Exception) -> str:
    """What an error says in its first line, or else what it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def reason(error: Exception) -> str:
    """The same of an error that a file gave, without its number and the file's name."""
    return getattr(error, "strerror", None) or first_line(error)


def halved(text: str) -> bool:
    """Whether a text holds halves of characters, which nothing encodes: some escapes write them,
    and so Python reads bytes that are no UTF-8."""
    return any("\ud800" <= one <= "\udfff" for one in text)


def visible(text: str, keep: str = "") -> str:
    """A text in one line, where what steers a terminal or is not seen stands as an escape.

    That is all but printable characters and spaces: escape sequences, line ends, marks that turn
    the direction of writing or have no width, bytes of a file's name that are no UTF-8. Characters
    of `keep` stay.
    """
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )
