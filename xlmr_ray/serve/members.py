"""How many parts a body may have: each list and object in it takes far more memory and time, to read and to check, than
its two characters.
"""

import re
from typing import Any

from xlmr_ray.serve.requests import Invalid, TooLarge

# Lists and objects in a list: inputs, pairs, documents.
MEMBERS = 4096
# Fields of an object.
FIELDS = 256
# Lists and objects of a whole body, and as many fields. To read half a million of them takes a second or two in which
# nobody else is answered, so they are counted before, outside of its texts.
PARTS = 32_768
QUOTE, COLON = b'":'
TEXT_OR_PART = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{:]', re.DOTALL)


def check_parts(body: bytes) -> None:
    """Raises TooLarge for a body that is not read yet and has more lists, objects or fields than any request needs."""
    if body.count(b"[") + body.count(b"{") <= PARTS and body.count(b":") <= PARTS:
        return
    lists = fields = 0
    for found in TEXT_OR_PART.finditer(body):
        what = body[found.start()]
        fields += what == COLON
        lists += what not in (COLON, QUOTE)
        if max(fields, lists) > PARTS:
            raise TooLarge(f"more than the {PARTS} lists and objects, or fields, that are allowed", field="body")


def check_members(value: Any, field: str = "") -> None:
    """Raises TooLarge or Invalid for a parsed body with more lists, objects or fields than any request needs."""
    if isinstance(value, dict):
        if len(value) > FIELDS:
            raise Invalid(field or "body", f"{len(value)} fields, at most {FIELDS} are allowed")
        for name, one in value.items():
            if isinstance(one, dict | list):
                check_members(one, f"{field}.{name[:64]}" if field else name[:64])
    elif isinstance(value, list):
        inner = [one for one in value if isinstance(one, dict | list)]
        if len(inner) > MEMBERS:
            raise TooLarge(f"{len(inner)} inputs, at most {MEMBERS} are allowed", field=field or "body")
        for one in inner:
            check_members(one, field)
