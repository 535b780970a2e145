"""Takes secrets out of texts that people and logs will see."""

import re

WEB = ("http", "https")
_URL = re.compile(r"""\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'"<>]+""")
_SIGNED = re.compile(
    r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|sv|token|access_token"
    r"|aws_(?:secret_access_key|access_key_id|session_token)|secret|password)(=|%3D)[^&\s,;'\"]+"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")


def clean_url(url: str) -> str:
    """`url` without user and password, and without the query of a web address; a path, as it is.

    Elsewhere a `?` is part of a key or of a pattern, and a name before `@` without a password that of a container.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return url
    host, slash, path = rest.partition("/")
    if scheme.lower() in WEB:
        host, path = (text.partition("?")[0].partition("#")[0] for text in (host, path))
    if _has_password(scheme, host):
        host = host.rpartition("@")[2]
    return f"{scheme}://{host}{slash}{path}"


def carries_secret(url: str) -> bool:
    """Whether a URL holds a password, or a web address a query: a signature, as far as anyone can tell."""
    scheme, found, rest = url.partition("://")
    return bool(found) and (_has_password(scheme, rest.partition("/")[0]) or (scheme.lower() in WEB and "?" in rest))


def _has_password(scheme: str, host: str) -> bool:
    user, found, _ = host.rpartition("@")
    return bool(found) and (":" in user or scheme.lower() in WEB)


def redacted(text: str) -> str:
    """`text` with its URLs cleaned, and without values that are signatures, keys or passwords by their names."""
    text = _URL.sub(lambda found: clean_url(found[0]), text)
    text = _SIGNED.sub(lambda found: f"{found[1]}{found[2]}…", text)
    return _KEY_ID.sub("…", text)
