"""Plumbing shared by the four scripts. Nothing here knows which algorithm runs."""


class UserError(ValueError):
    """Something the user can put right; `launch.launch` prints its one sentence instead of a traceback."""


class Waiting(Exception):
    """A run has stopped until somebody brings what it asked for; `launch.launch` prints its sentence."""


class Interrupted(BaseException):  # like KeyboardInterrupt: nothing that handles errors catches it
    """A signal arrived; everything that a later `--resume` needs is on the disk."""
