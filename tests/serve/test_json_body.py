"""Bodies that are not JSON, or more than JSON allows: refused by the field's name, and never quoted."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xlmr_ray.serve.json_body import Parser
from xlmr_ray.serve.members import PARTS, check_parts
from xlmr_ray.serve.requests import Invalid, TooLarge

DEPTH = 32
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values, st.booleans())
def test_json_is_taken_as_it_is(value, ascii_only):
    assert Parser(DEPTH).parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_invalid(body):
    with suppress(Invalid):  # and nothing else
        Parser(DEPTH).parse(body)


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (b'{"inputs": ["a", NaN]}', "inputs.1", "NaN is not JSON"),
        (b'{"parameters": {"top_k": -Infinity}}', "parameters.top_k", "-Infinity is not JSON"),
        (b'{"top_n": 1e400}', "top_n", "beyond the range of a double"),
        (b'{"top_n": 123456789012345678901234567890}', "top_n", "more than 19 digits"),
        (b'{"inputs": ["a", {"x": "\\ud800"}]}', "inputs.1.x", "lone surrogate U+D800 at character 0"),
        (b'{"inputs": "a", "inputs": "b"}', "inputs", "is there twice"),
        (b'{"a": {"b": 1, "b": 2}}', "a.b", "is there twice"),
        (b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "inputs.0", "nested more than 32 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "body", "nested more than 32 deep"),
        (b'{"a":' * 100_000, "body", "nested more than 32 deep"),
        (b'{"inputs": "secret\xff"}', "body", "byte 18 is not UTF-8"),
        (b'{"inputs": secret}', "body", "is not JSON: Expecting value at character 11"),
        (b"", "body", "is not JSON"),
    ],
)
def test_the_field_is_named(body, field, message):
    with pytest.raises(Invalid) as raised:
        Parser(DEPTH).parse(body)
    assert raised.value.field == field
    assert message in raised.value.message
    assert "secret" not in str(raised.value)


def test_nesting_at_the_limit_and_a_byte_order_mark():
    assert Parser(3).parse(b"\xef\xbb\xbf[[[1]]]") == [[[1]]]
    with pytest.raises(Invalid):
        Parser(3).parse(b"[[[[1]]]]")
    assert Parser(2).parse(b'["[[[[", [1]]') == ["[[[[", [1]]  # brackets in a text are none


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 900_000,
        b'{"inputs":[' + b"[1]," * PARTS + b"[1]]}",
        b'{"a\\"":' + b'{"a":' * PARTS,
        b"{" + b'"a":1,' * PARTS + b'"b":1}',
        b'"' + b'\\"' * 900_000 + b'":' + b"[" * 40_000,
    ],
)
def test_more_parts_than_any_request_has(body):
    with pytest.raises(TooLarge, match="lists and objects"):
        check_parts(body)


@pytest.mark.parametrize("text", ["[{:" * 100_000, '\\"[' * 100_000, '"[' * 100_000, "\\" * 300_001 + "[" * 100_000])
def test_parts_in_texts_are_none(text):
    """Also of a text that never ends."""
    check_parts(json.dumps({"inputs": [text, text]}).encode())
    check_parts(b'"' + b'\\"[' * 100_000)


def test_what_is_wrong_a_thousand_times():
    with pytest.raises(Invalid, match="NaN is not JSON, and more like it"):
        Parser(DEPTH).parse(b"[" + b"NaN," * 100_000 + b"NaN]")
