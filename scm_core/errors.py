"""The one error that is the user's to mend."""


class UserError(Exception):
    """What the user got wrong and what to do, in one sentence; command lines exit with code 2."""
