"""Plumbing shared by the four scripts. Nothing here knows which algorithm runs."""


class UserError(ValueError):
    """A mistake that the user can fix; `launch.launch` prints its one sentence instead of a traceback."""


class FilesNeeded(Exception):
    """A run has stopped until the file that it needs is there; `launch.launch` prints which one."""


class Interrupted(BaseException):  # like KeyboardInterrupt: nothing that handles errors catches it
    """A signal arrived; everything that `--resume` needs is saved."""
