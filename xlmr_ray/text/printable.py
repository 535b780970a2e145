"""Text that any terminal and any UTF-8 file can take."""


def printable(text: str) -> str:
    """`text` with backslash escapes for what is not UTF-8: bytes of a file's name, and other lone surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
