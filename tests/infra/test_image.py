"""The image's build file, as far as that can be told without building: its sources, its arguments, its order."""

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.infra.manifests import KUBERNETES, ROOT, read

DOCKERFILE = (ROOT / "infra" / "image" / "Dockerfile").read_text("utf-8")
# Instructions whole, comments left out.
LINES = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.M)).split("\n")
INSTRUCTIONS = [tuple(line.split(maxsplit=1)) for line in LINES if line]


def texts(name: str) -> list[str]:
    return [text for instruction, text in INSTRUCTIONS if instruction == name]


def in_context(path: str) -> bool:
    """Whether .dockerignore leaves the path in: the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        heads = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if line.startswith("**/") else heads
        if line and not line.startswith("#") and any(fnmatch.fnmatch(name, pattern) for name in names):
            kept = line.startswith("!")
    return kept


def test_every_source_is_there_and_sent():
    sources = [source for text in texts("COPY") for source in text.split()[:-1] if not source.startswith("--")]
    assert "xlmr_ray" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert in_context(source), source
    assert in_context("xlmr_ray/assets/mini/model.safetensors")
    for left in (".venv/bin/python", ".git/config", "demo-output/x", "tests/models.py", "xlmr_ray/__pycache__/a.pyc"):
        assert not in_context(left), left


def test_every_argument_is_used_and_every_one_used_is_declared():
    declared = {text.partition("=")[0] for text in texts("ARG")}
    used = set(re.findall(r"\$\{(\w+)\}", DOCKERFILE))
    assert declared == used


def test_the_user_is_a_number_that_the_pods_have():
    (user,) = texts("USER")
    (rayjob,) = read(KUBERNETES / "base" / "rayjob.yaml")
    security = rayjob["spec"]["submitterPodTemplate"]["spec"]["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert f"--uid {security['runAsUser']}" in DOCKERFILE
    assert [name for name, _ in INSTRUCTIONS].index("USER") > max(
        place for place, (name, _) in enumerate(INSTRUCTIONS) if name in ("RUN", "COPY")
    )


def test_all_that_is_written_is_in_tmp():
    settings = dict(re.findall(r"(\w+)=(\S+)", " ".join(texts("ENV"))))
    for name in ("HOME", "RAY_TMPDIR", "HF_HOME", "XDG_CACHE_HOME"):
        assert settings[name].startswith("/tmp"), name
    assert texts("WORKDIR")[-1] == "/tmp"
    assert texts("ENTRYPOINT") == ['["xlmr-ray"]']


def test_what_changes_seldom_comes_first():
    order = [
        DOCKERFILE.index(text) for text in ("COPY constraints.txt", "COPY infra/image/requirements.py", "from=wheel")
    ]
    assert order == sorted(order)


def test_the_requirements_are_the_package_s():
    script = ROOT / "infra" / "image" / "requirements.py"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    printed = {}
    for torch in ("cpu", "cuda"):
        command = [sys.executable, "-S", str(script), str(ROOT / "pyproject.toml"), torch]
        printed[torch] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed["cpu"] == project["dependencies"]
    assert printed["cuda"] == [*project["dependencies"], *project["optional-dependencies"]["quantization"]]


def test_a_linter_has_nothing_to_say():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, ROOT / "infra" / "image" / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("buildah") and shutil.which("debootstrap")), reason="buildah is not installed")
def test_the_image_is_built_and_runs_the_demo():
    """Minutes: it builds the image without a daemon, and runs it without a network. Root, on Linux."""
    script = ROOT / "infra" / "image" / "without_daemon.sh"
    done = subprocess.run([script, "cpu"], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "rows in 2,850 = out 2,850 + errors 0" in done.stdout
    assert "verified" in done.stdout
