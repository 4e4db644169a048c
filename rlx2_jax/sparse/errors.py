"""What a caller of this room can mend."""


class SparseError(ValueError):
    """A method, a tree or a state that does not fit; the message is one sentence that says the mend."""
