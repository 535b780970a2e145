import pytest

from xlmr_ray.serve.protocols.explain import path_of, short_name


@pytest.mark.parametrize(
    ("loc", "kind", "way"),
    [
        (("body", "inputs", "list[str]", 3), "string_type", ["inputs", 3]),
        (("body", "TEI", "query"), "missing", ["query"]),
        (("body", "inputs", "Pair", "text_pair"), "missing", ["inputs", "text_pair"]),
        (("body", "parameters", "str"), "extra_forbidden", ["parameters", "str"]),
        (("body", "inputs", "list[list[constrained-int]]", 0, 1), "int_type", ["inputs", 0, 1]),
        (("body",), "missing", []),
        (("body", 17), "json_invalid", []),
        (("query", "model"), "string_type", ["model"]),
    ],
)
def test_way_to_a_field(loc, kind, way):
    assert path_of({"loc": loc, "type": kind}) == way


def test_names_that_callers_make_up_fit_a_line():
    assert short_name("a\nb\x00") == "a?b?"
    assert short_name("") == "''"
    assert len(short_name("x" * 1000)) == 64
