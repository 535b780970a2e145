"""What was done so far, kept beside the output: from it a training goes on to the same digits."""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlmr_ray.errors import JobFailed

VERSION = 2  # of what is kept, and of what a step draws


@dataclass
class Progress:
    """`step` is the number of steps that are done, `losses` those of each; `history` what was measured after each
    epoch, `best` the place in it of the best one; `since_best` the epochs since then.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: int | None = None
    seconds: float = 0.0

    @property
    def since_best(self) -> int:
        return 0 if self.best is None else len(self.history) - 1 - self.best


def identity_of(parts: Mapping[str, Any]) -> str:
    """A name for all that decides a training's digits."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class StateFolder:
    """A folder beside the output, one for each identity, so that another job's is never gone on with."""

    folder: Path

    @classmethod
    def of(cls, output: Path, identity: str) -> "StateFolder":
        return cls(output.parent / f".{output.name}.{identity}")

    @property
    def file(self) -> Path:
        return self.folder / "state.pt"

    def save(self, progress: Progress, tensors: Mapping[str, Any]) -> None:
        """Replaces what was kept, whole or not at all. Raises JobFailed where there is no room for it."""
        temp = self.folder / "state.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temp.open("wb") as file:
                torch.save({"version": VERSION, "progress": vars(progress), **tensors}, file)
                file.flush()
                os.fsync(file.fileno())
            temp.replace(self.file)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
                self.folder.rmdir()  # where nothing was kept before
            kept = (
                f"what was done up to an earlier step is in {self.folder}" if self.file.exists() else "nothing is kept"
            )
            raise JobFailed(f"{self.file}: cannot be written ({reason(error)}); {kept}") from None

    def try_room(self, needed: int) -> None:
        """Raises JobFailed where nothing can be kept, or the disk has no room for so many bytes: before a training, and
        not when it is lost.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"0")
                file.flush()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise JobFailed(f"{self.folder}: cannot be written ({reason(error)}); nothing was trained") from None
        finally:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # where nothing is in it
        if free < needed:
            raise JobFailed(
                f"{self.folder.parent}: {free / 1e6:,.1f} MB are free, and what is kept of the training takes "
                f"{needed / 1e6:,.1f} MB; nothing was trained: make room, or name another output.path"
            )

    def load(self) -> tuple[Progress, dict[str, Any]] | None:
        """What was kept; None where there is nothing. Raises JobFailed where it cannot be read."""
        if not self.file.exists():
            return None
        try:
            tensors: dict[str, Any] = torch.load(self.file, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise JobFailed(f"{self.file}: cannot be read ({reason(error)}); remove it to begin anew") from None
        if tensors.pop("version", 1) != VERSION:
            raise JobFailed(f"{self.file}: was kept by another version of xlmr_ray; remove it to begin anew")
        return Progress(**tensors.pop("progress")), tensors

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def reason(error: BaseException) -> str:
    """An error in one line. Torch's own error of a file that it could not write comes after the system's, which says
    why.
    """
    said = next((one.strerror for one in (error, error.__context__) if isinstance(one, OSError) and one.strerror), None)
    return said or " ".join(str(error).split())[:200]


def copied_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that what is trained on does not change, in the CPU's memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
