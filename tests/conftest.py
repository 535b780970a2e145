"""What all tests share: markers that say why a test is skipped, and one Ray session, made when the first test asks
for it.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import xlmr_ray.serve.ray_environment  # noqa: F401 - as `xlmr-ray serve` has it, for the one Ray session of all tests
from tests.seaweed import seaweed
from tests.steps_here import steps_here

__all__ = ["seaweed", "steps_here"]

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")
    parser.addoption("--network", action="store_true", help="run the tests that ask the Hugging Face hub, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no GPU here",
        "slow": None if config.getoption("--slow") else "takes minutes: --slow",
        "network": None if config.getoption("--network") else "asks the hub: --network",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from xlmr_ray.batch.cluster import connected

    with connected("local"):
        yield


@pytest.fixture(scope="session")
def mini() -> Path:
    """The embedded checkpoint."""
    from xlmr_ray.checkpoint.files import resolve

    return resolve("embedded:mini")


@pytest.fixture(scope="session")
def udhr() -> Path:
    """The embedded corpus."""
    import xlmr_ray

    return Path(xlmr_ray.__file__).parent / "assets" / "udhr"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint for text-classification, of three labels."""
    from tests.models import save_classifier

    return save_classifier(tmp_path_factory.mktemp("model"), num_labels=3)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A service of every task behind HTTP: `tests.serve.server.Running`."""
    from tests.serve.server import every_task, running, save_causal

    with running(every_task(save_causal(tmp_path_factory.mktemp("causal")))) as service:
        yield service


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A call of the command line in this process: its exit code, what it prints, and what goes to standard error."""
    from xlmr_ray.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["xlmr-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return run
