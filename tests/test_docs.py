"""What the pages say is run: Python, commands, job files and settings; and their links lead somewhere.

A command that names what no test can have (a bucket, somebody's checkpoint, a Kubernetes cluster) is only parsed; the
others are run as they stand, in a folder that has the job files and a part of the sample corpus. They share one batch
run, one service and one measurement.
"""

import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sentence_transformers import SentenceTransformer
from typer.main import get_command

from tests.models import save_e5_layout
from xlmr_ray import result_files
from xlmr_ray.batch.job import Job, check_job, read_job
from xlmr_ray.batch.plan import columns_of, task_recipes
from xlmr_ray.cli import app, main
from xlmr_ray.serve.models import check_models
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.train.job import DataSection, FinetuneJob, check_finetune_job, read_finetune_job
from xlmr_ray.validation import checked

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("infra/**/*.md"),
        *ROOT.glob("xlmr_ray/assets/*/README.md"),
    ]
)
ELSEWHERE = ("docker", "kubectl", "openssl", "ray", "git", "pip")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str, pages: list[Path] = PAGES) -> list[Block]:
    return [
        Block(page, text[: match.start()].count("\n") + 1, language, match[1])
        for page in pages
        for text in [page.read_text("utf-8")]
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def commands() -> list[tuple[str, str]]:
    """Of every page, each with where it stands; one that goes on over several lines is one."""
    found: dict[str, str] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip():
                found.setdefault(" ".join(line.split()), str(block))  # the same one on two pages is run once
    return [(where, command) for command, where in found.items()]


def inline_commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        found += [(page.name, " ".join(code.split())) for code in re.findall(r"`(xlmr-ray [^`]+)`", text)]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are run: the paths that the pages name, with an eighth of the corpus."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    (folder / "infra").symlink_to(ROOT / "infra")
    corpus = folder / "xlmr_ray" / "assets" / "udhr"
    corpus.mkdir(parents=True)
    shutil.copy(ROOT / "xlmr_ray" / "assets" / "udhr" / "part-0.parquet", corpus)
    (settings,) = [block for block in service_settings() if block.page.name == "service.md"]
    (folder / "serve.yaml").write_text(settings.text.replace("/run/secrets/keys", str(folder / "keys")))
    (folder / "keys").write_text("a-key-of-one-client\n")
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def labelled(ray_session: None, folder: Path) -> None:
    """`demo-output/labels`, which many commands read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        xlmr_ray(["run", "pipelines/label-languages.yaml", "--quiet"])


@pytest.fixture(scope="module")
def deduplicated(ray_session: None, folder: Path) -> None:
    """`demo-output/vectors` and `demo-output/duplicates`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        methods = ["--methods", "exact,minhash,embedding", "--cosine", "0.999"]
        assert "counted in report.json beside it" in deduplicate(["pipelines/embed.yaml", *methods])


def deduplicate(arguments: list[str]) -> str:
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["deduplicate.py", *arguments])
        runpy.run_path(str(ROOT / "pipelines" / "deduplicate.py"), run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def measured(folder: Path) -> None:
    """`bench.json`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        xlmr_ray(["bench", "embedding", "--model", "embedded:mini", "--input", "xlmr_ray/assets/udhr/", *FEW])


FEW = ("--documents", "16", "--rounds", "1")


def xlmr_ray(arguments: list[str]) -> str:
    """What a call of the command line prints, which must end well."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", ["xlmr-ray", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, printed.getvalue()
    return printed.getvalue()


def parse(words: list[str]) -> None:
    """Raises where a call names a command or an option that is not there. Values may be placeholders."""
    known = get_command(app).commands
    assert words[0] in known or words[0].startswith("--"), words
    if words[0] in known:
        options = {name for parameter in known[words[0]].params for name in parameter.opts}
        named = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert named <= options | {"--help"}, (words, named - options)


def is_here(word: str) -> bool:
    """Whether a word of a command is a path, URL or name that a test has."""
    if word.startswith("--") or "=" in word or not re.search(r"[/.]|^[A-Z]+$", word):
        return True
    if word.replace(".", "").replace("e", "").isdigit() or word in ("bench.json", "bench.svg", "demo-output/report"):
        return True
    return "://" not in word and Path(word).exists()


@pytest.mark.parametrize(("where", "command"), commands(), ids=lambda text: text[:70])
def test_commands(where: str, command: str, inside: Path, request: pytest.FixtureRequest) -> None:
    words = shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if ">" in words:
        words = words[: words.index(">")]
    program, *arguments = words
    if program == "xlmr-ray":
        parse(arguments)
        if all(map(is_here, arguments)):
            run_ours(arguments, request)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in arguments if "=" not in word and word not in targets] == []
    elif program == "curl" and "$(cat keys)" not in command:
        ask(arguments, request.getfixturevalue("server").url)
    elif words[:2] == ["python", "-c"]:
        request.getfixturevalue("deduplicated" if "duplicates" in command else "labelled")
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(words[2], where, "exec"), {})
        assert printed.getvalue().strip() not in ("", "0")
    elif words[:2] == ["python", "pipelines/deduplicate.py"]:
        request.getfixturevalue("deduplicated")
        assert "removed" in deduplicate(arguments[1:])
    elif words[:2] == ["python", "-m"] and words[2].startswith(("tests.", "pipelines.")):
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    else:
        assert program in (*ELSEWHERE, "curl", "python", "pytest", "source"), command
    for word in words:  # what is run elsewhere still names our files
        if word.startswith(("infra/", "pipelines/", "tests/", "docs/")):
            assert (ROOT / word).exists(), word
        if "xlmr-ray" in words[1:] and word == "xlmr-ray" and words[words.index(word) - 1] == "--":
            parse(words[words.index(word) + 1 :])


def test_the_first_job_of_the_readme_runs(ray_session: None, tmp_path: Path) -> None:
    """With a folder as that checkpoint is published, and folders for the buckets: sentence-transformers' vectors."""
    (command,) = [command for _, command in commands() if "--model intfloat/multilingual-e5-small" in command]
    folder, corpus, output = save_e5_layout(tmp_path / "e5"), tmp_path / "corpus", tmp_path / "vectors"
    texts = ["query: how much protein?", "Alle Menschen sind frei.  ", "x\n", "a <pad> b\u200b", "word " * 90]
    corpus.mkdir()
    pq.write_table(pa.table({"text": texts}), corpus / "part-0.parquet")
    for name, here in [
        ("intfloat/multilingual-e5-small", folder),
        ("s3://bucket/corpus/", corpus),
        ("s3://bucket/vectors/", output),
    ]:
        command = command.replace(name, str(here))
    xlmr_ray(shlex.split(command)[1:])
    got = pq.read_table(result_files(output)).sort_by("row")
    wanted = SentenceTransformer(str(folder), device="cpu").encode(texts)
    assert np.abs(np.array(got["embedding"].to_pylist()) - wanted).max() < 1e-5
    assert got["truncated"].to_pylist() == [False] * 4 + [True]


def run_ours(arguments: list[str], request: pytest.FixtureRequest) -> None:
    """`xlmr-ray` with what is here, cheaper where a page's own figures would take long."""
    name = arguments[0]
    if name == "serve":  # the service itself is the fixture `server`
        assert yaml.safe_load(xlmr_ray([*arguments, *(() if "--print-config" in arguments else ("--print-config",))]))
        return
    if any(word.startswith("demo-output") or word == "pipelines/label-languages.yaml" for word in arguments):
        request.getfixturevalue("labelled")
    if "bench.json" in arguments:
        request.getfixturevalue("measured")
    printed = xlmr_ray([*arguments, *(FEW if name == "bench" else ())])
    if "--dry-run" in arguments:
        assert "nothing was started or written" in printed
    elif name == "run":
        assert "nothing left to do" in printed
    elif name == "verify":
        assert printed.rstrip().endswith("verified")
    else:
        assert printed.strip()


def ask(arguments: list[str], url: str) -> None:
    """A curl line, against the service of the tests."""
    (address,) = [word for word in arguments if word.startswith("localhost:8000")]
    headers = [arguments[i + 1].split(": ", 1) for i, word in enumerate(arguments) if word == "-H"]
    (body,) = [arguments[i + 1] for i, word in enumerate(arguments) if word == "-d"]
    answer = httpx.post(url + address.removeprefix("localhost:8000"), headers=dict(headers), content=body.encode())
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("page", "command"), inline_commands(), ids=lambda text: text[:70])
def test_commands_in_the_text(page: str, command: str) -> None:
    parse(shlex.split(command.replace("…", ""))[1:])


def test_targets_in_the_text() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in PAGES:
        for name in re.findall(r"`make ([a-z-]+)`", page.read_text("utf-8")):
            assert name in targets, (page, name)


PRINTED = {
    "docs/python.md": [("'label': 'de'", "Ein Bild einfügen"), ("['fr', 'de']",)],
    "xlmr_ray/assets/help/README.md": [("四角形を描きます。", "'label': 'Calc'")],
    "README.md": [("'label': 'de'",)],
    "docs/error-rows.md": [("code: string", "row_count: int64")],
}


def python_blocks() -> Iterator[tuple[Block, tuple[str, ...]]]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if name in ("docs/extending.md", "docs/vectors.md"):
            continue  # tests/test_extending.py, tests/clients/test_vector_stores.py
        found = blocks("python", [page])
        expected = PRINTED.get(name, [])
        assert len(found) == len(expected), f"{name}: {len(found)} blocks, what they print is said of {len(expected)}"
        yield from zip(found, expected, strict=True)


@pytest.mark.parametrize(("block", "expected"), list(python_blocks()), ids=str)
def test_python(block: Block, expected: tuple[str, ...], inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "OUT/errors/RUN" in block.text:
        (errors,) = (ROOT / "tests/batch/tables/0.1.0/out/errors").iterdir()
        shutil.copytree(errors, inside / "OUT" / "errors" / "RUN")
    exec(compile(block.text, str(block), "exec"), {})
    printed = capsys.readouterr().out
    for text in expected:
        assert text in printed


def job_blocks() -> list[Block]:
    return [block for block in blocks("yaml") if "tasks:\n" in block.text and block not in service_settings()]


def test_every_key_of_a_training_is_documented() -> None:
    (block,) = [block for block in blocks("yaml") if "\nmethod: " in block.text]
    whole = yaml.safe_load(block.text)
    job = check_finetune_job(whole, str(block))
    assert set(FinetuneJob.model_fields) == set(whole)
    assert set(DataSection.model_fields) == set(whole["train"])
    assert job.rate == 5e-5


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines" / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainings_in_pipelines(path: Path) -> None:
    check_finetune_job(read_finetune_job(path), str(path))


def service_settings() -> list[Block]:
    return [block for block in blocks("yaml") if block.text.startswith("models:\n")]


@pytest.mark.parametrize("block", job_blocks(), ids=str)
def test_job_files(block: Block) -> None:
    check_job(yaml.safe_load(block.text), str(block))


OF_TASKS = {"text_pair", "question", "context", "choices", "spans", "formats"}  # named in the comment beside `text`


def test_every_key_of_the_job_file_is_documented() -> None:
    (block,) = [block for block in job_blocks() if "engine:\n" in block.text]
    whole = yaml.safe_load(block.text)
    job = check_job(whole, "docs/jobs.md")
    assert set(Job.model_fields) == set(whole)
    for name in ("input", "engine", "cluster", "errors", "report"):
        known = set(type(getattr(job, name)).model_fields) - OF_TASKS
        assert known == set(whole[name]) - {"csv", "warc"}, name  # options of a format, under its name


@pytest.mark.parametrize("block", service_settings(), ids=str)
def test_the_settings_of_the_service(block: Block) -> None:
    settings = checked(ServeSettings, yaml.safe_load(block.text), str(block))
    if block.page.name == "service.md":  # the others name checkpoints that are not here
        check_models(settings)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.stem)
def test_job_files_in_pipelines_fit_their_tasks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = check_job(read_job(path), str(path))
    roles = columns_of(job, task_recipes(job)).text
    assert roles == {role: getattr(job.input, role) for role in roles}


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for page in ROOT.glob("docs/*.md"):
        assert f"(docs/{page.name})" in readme, page.name


def test_every_task_is_documented() -> None:
    from xlmr_ray.tasks.registry import TASKS

    table = (ROOT / "docs" / "tasks.md").read_text("utf-8")
    assert [name for name in TASKS if f"`{name}`" not in table] == []
