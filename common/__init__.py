"""Plumbing shared by the four scripts. Nothing here knows which algorithm runs."""


class UserError(ValueError):
    """A mistake that the user can fix; `launch.launch` prints its one sentence instead of a traceback."""
