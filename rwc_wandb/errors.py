"""What a user can mend."""


class UserError(ValueError):
    """Bad input. The message is one sentence that names the value, what is allowed and the fix.

    On the command line it is all that is printed; the exit code is 2.
    """
