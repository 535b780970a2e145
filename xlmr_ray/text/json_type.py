"""What JSON calls a value, for messages."""

NAMES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def json_type(value: object) -> str:
    return NAMES.get(type(value), type(value).__name__)
