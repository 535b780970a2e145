"""How many parts a body may have: each list and object in it takes far more memory and time, to read and to check, than
its two characters.
"""

from typing import Any

from xlmr_ray.serve.requests import Invalid, TooLarge

# Lists and objects in a list: inputs, pairs, documents.
MEMBERS = 4096
# Fields of an object.
FIELDS = 256


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
