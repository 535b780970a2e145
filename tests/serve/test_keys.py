import pytest

from xlmr_ray.errors import UserError
from xlmr_ray.serve.keys import Keys
from xlmr_ray.serve.requests import Unauthorized
from xlmr_ray.serve.settings import KeysSection


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def keys(tmp_path, clock):
    file = tmp_path / "keys"
    file.write_text("# the old one\none\n\ntwo\n")
    return Keys(KeysSection(file=str(file)), lambda: clock[0])


@pytest.mark.parametrize("header", ["Bearer one", "bearer two", "Bearer  one "])
def test_a_key_of_the_file(keys, header):
    keys.check(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "one",
        "Bearer",
        "Bearer ",
        "Basic one",
        "Bearer onetwo",
        "Bearer o",
        "Bearer # the old one",
        "Bearer ö",
    ],
)
def test_anything_else_is_refused(keys, header):
    with pytest.raises(Unauthorized) as raised:
        keys.check(header)
    assert raised.value.headers == {"www-authenticate": "Bearer"}


def test_a_changed_file_is_read_again(keys, clock, tmp_path):
    (tmp_path / "next").write_text("three\n")
    (tmp_path / "next").replace(tmp_path / "keys")  # as a mounted secret changes
    keys.check("Bearer one")  # not looked at yet
    clock[0] += 2
    keys.check("Bearer three")
    with pytest.raises(Unauthorized):
        keys.check("Bearer one")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "keys").write_text("one\r\ntwo\r\n", "utf-8-sig")  # as Notepad writes it
    keys = Keys(KeysSection(file=str(tmp_path / "keys")))
    keys.check("Bearer one")
    keys.check("Bearer two")


@pytest.mark.parametrize("harm", ["gone", "empty", "bytes"])
def test_a_file_that_is_lost_leaves_the_keys_in_force(keys, clock, tmp_path, harm, caplog):
    file = tmp_path / "keys"
    {"gone": file.unlink, "empty": lambda: file.write_text("# none\n"), "bytes": lambda: file.write_bytes(b"\xff")}[
        harm
    ]()
    clock[0] += 2
    keys.check("Bearer one")
    with pytest.raises(Unauthorized):
        keys.check("Bearer ")
    assert "stay in force" in caplog.text
    assert "two" not in caplog.text


def test_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEYS", "a, b c")
    keys = Keys(KeysSection(environment="SOME_KEYS"))
    for key in "abc":
        keys.check(f"Bearer {key}")
    with pytest.raises(Unauthorized):
        keys.check("Bearer a,")


def test_without_keys_anyone_may_ask_but_not_where_none_is_found(tmp_path, monkeypatch):
    Keys(KeysSection()).check(None)
    with pytest.raises(UserError, match=r"keys\.file .*nope: cannot be read: No such file"):
        Keys(KeysSection(file=str(tmp_path / "nope")))
    monkeypatch.delenv("NO_KEYS", raising=False)
    with pytest.raises(UserError, match="no key in NO_KEYS"):
        Keys(KeysSection(environment="NO_KEYS"))
