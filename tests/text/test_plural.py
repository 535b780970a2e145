from xlmr_ray.text.plural import plural


def test_one_thing_is_one():
    assert [plural(number, "file") for number in (0, 1, 2, 1000)] == ["0 files", "1 file", "2 files", "1,000 files"]
