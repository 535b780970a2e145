"""A job whose output would be its own next input is refused at the first launch, on disk and in a bucket."""

import pytest

from tests.batch.input.test_listing import lines
from xlmr_ray.batch.input.source import find_inputs
from xlmr_ray.batch.store.filesystem import filesystem
from xlmr_ray.errors import UserError

RUN = "data/3846e5b2cf3411dd"


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path):
    """A folder with one input, `in/a.jsonl`; what makes a file in it; and the options of its file system."""
    if request.param == "disk":

        def put(name):
            lines(tmp_path / name, "x")

        put("in/a.jsonl")
        return str(tmp_path), put, None
    seaweed = request.getfixturevalue("seaweed")
    folder = seaweed.new_folder()
    fs, where = filesystem(folder, options=seaweed.options)

    def put_object(name):
        fs.pipe_file(f"{where}/{name}", b'{"text": "x"}\n')

    put_object("in/a.jsonl")
    return folder, put_object, seaweed.options


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("in", "in/out"),
        ("in/", "in/deep/er/out/"),
        ("in", "in"),
        ("in/*", "in/out"),
        ("in/**/*.parquet", "in/out"),
        ("in/**", "in/out"),
        ("i*/out/*/*/*.parquet", "in/out"),
    ],
)
def test_an_output_inside_the_input_is_refused(place, path, out):
    folder, put, options = place
    if "parquet" in path:
        put("in/out/old/er/b.parquet")
    with pytest.raises(UserError, match=r"lies inside the input .+/i.+, so the next launch would score") as error:
        find_inputs(f"{folder}/{path}", output=f"{folder}/{out}", options=options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("in", "out"),
        ("in", "in-out"),
        ("in", "in/_out"),
        ("in", "in/.out/deep"),
        ("in/*.jsonl", "in/out"),
        ("in/a.jsonl", "in"),
        ("in/**/*.jsonl", "in/out"),
        ("in", ""),
    ],
)
def test_an_output_that_is_not_read_is_none(place, path, out):
    folder, _, options = place
    found = find_inputs(f"{folder}/{path}", output=f"{folder}/{out}", options=options)
    assert [one.key for one in found.inputs] == [f"{folder}/in/a.jsonl"]


def test_another_format_is_not_read(place):
    folder, put, options = place
    put(f"in/out/{RUN}/0000000-000000-0123456789abcdef.parquet")
    found = find_inputs(f"{folder}/in", format="jsonl", output=f"{folder}/in/out", options=options)
    assert [one.key for one in found.inputs] == [f"{folder}/in/a.jsonl"]


def test_a_finished_run_may_be_read_by_name(place):
    folder, put, options = place
    put(f"out/{RUN}/b.parquet")
    for path in (f"out/{RUN}", f"out/{RUN}/b.parquet", f"out/{RUN}/*.parquet"):
        assert len(find_inputs(f"{folder}/{path}", output=f"{folder}/out", options=options).inputs) == 1
    for path in ("out", "out/data", "out/*", "out/data/*/*.parquet"):
        with pytest.raises(UserError, match="lies inside the input"):
            find_inputs(f"{folder}/{path}", output=f"{folder}/out", options=options)


def test_through_links(tmp_path):
    lines(tmp_path / "in" / "a.jsonl", "x")
    (tmp_path / "data").mkdir()
    (tmp_path / "in" / "all").symlink_to(tmp_path / "data")
    (tmp_path / "here").symlink_to(tmp_path / "in")
    for path, out in (
        ("in", "data/out"),  # the output's folder is linked into the input
        ("in/*", "data/out"),
        ("in", "here/out"),  # the output is reached through a link
        ("here", "in/out"),
        ("here/*", "in/out"),
        ("in", "in/all/out"),
    ):
        with pytest.raises(UserError, match="lies inside the input"):
            find_inputs(str(tmp_path / path), output=str(tmp_path / out))
    lines(tmp_path / "data" / "out" / RUN / "b.parquet", "x")
    with pytest.raises(UserError, match="lies inside the input"):  # a linked folder that only the glob finds
        find_inputs(f"{tmp_path}/in/*/out/data/*/*.parquet", output=str(tmp_path / "data" / "out"))
