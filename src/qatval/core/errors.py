"""The errors a user can cause.

Each is shown as one line that says what was expected, what came and what to do, never as a
traceback. Anything else that is raised is a defect of qatval.
"""


class QatvalError(Exception):
    """A run could not start or go on because of something the user can change (exit code 1)."""

    exit_code = 1


class UsageError(QatvalError):
    """The command itself is wrong: an unknown choice, a value out of range (exit code 2)."""

    exit_code = 2
