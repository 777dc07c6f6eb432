"""What is said to a user who can mend it, or should know it; the command line prints both without a trace."""


class UserError(ValueError):
    """Bad input from outside: one sentence that names what is wrong and what is accepted."""


class Notice(UserWarning):
    """What a user should know and what stops nothing, in one sentence; given to `warnings.warn`."""
