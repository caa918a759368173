"""How the story of a session ends: raised from wherever it is waited, read by its owner."""


class Ended(Exception):
    """The session is over; the text says why, for its owner."""


class Late(Ended):
    """What was waited for did not come in time."""
