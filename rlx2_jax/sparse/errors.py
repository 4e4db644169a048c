"""User errors of sparse training."""


class SparseError(ValueError):
    """A method, a tree or a state that does not fit; the message is one sentence that says the mend."""
