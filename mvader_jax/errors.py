"""The one exception that means "the user can mend this": the command line prints it and exits 2."""


class UserError(ValueError):
    """Bad input from outside: one sentence that names what is wrong and what is accepted."""
