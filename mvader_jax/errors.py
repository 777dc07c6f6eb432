"""What is said to a user who can mend it, or should know it; the command line prints both without a trace."""


class UserError(ValueError):
    """Bad input from outside: one sentence that names what is wrong and what is accepted."""


class Notice(UserWarning):
    """What a user should know and what stops nothing, in one sentence; given to `warnings.warn`."""


def first_line(error: BaseException) -> str:
    """What a library's error says, as a part of one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
