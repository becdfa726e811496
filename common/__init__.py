"""Plumbing shared by the four scripts. Nothing here knows which algorithm runs."""


class UserError(ValueError):
    """Something the user can put right; `run.launch` prints its one sentence instead of a traceback."""
