"""An error that a library raised, for a message of one line."""


def first_line(error: BaseException) -> str:
    """The first line of what it says; its type's name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
