"""Downloads: a hub id or an object store's prefix -> a folder in a local cache, whole or not at all."""

import hashlib
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from xlmr_ray.checkpoint.cache import cache_folder
from xlmr_ray.checkpoint.folder import HEADS
from xlmr_ray.errors import JobFailed, UserError

# Configuration, tokenizer, the small modules of sentence-transformers folders and bge-m3's two extra heads.
SMALL = [
    "*.json",
    "sentencepiece.bpe.model",
    "[1-9]*_*/*.safetensors",
    "[1-9]*_*/*.bin",
    "sparse_linear.pt",
    "colbert_linear.pt",
]
SAFE = ["model.safetensors", "model-*.safetensors", "0_*/model*.safetensors"]
PICKLED = ["pytorch_model.bin", "pytorch_model-*.bin", "0_*/pytorch_model*.bin"]
# Other runtimes' copies of the weights, and what a training run leaves behind.
IGNORE = ["onnx/*", "openvino/*", "checkpoint-*/*", "runs/*", ".*"]


def fetch_hub(
    model: str,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    token: str | bool | None = None,
    weights: bool = True,
    inside: str = "",
    force_download: bool = False,
) -> Path:
    """The snapshot of a hub model: its safetensors, or its `.bin` files instead; of a folder `inside` it, that folder
    in the snapshot, such as a head saved beside its encoder. Raises UserError, JobFailed.
    """
    head = inside.startswith(f"{HEADS}/")  # with its encoder, whose weights are its own, too

    def snapshot(patterns: list[str]) -> Path:
        got = snapshot_download(
            model,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[f"{inside}/{one}" for one in patterns if inside] + (patterns if head or not inside else []),
            # What is asked for by name is not ignored.
            ignore_patterns=[one for one in IGNORE if not fnmatch(f"{inside}/", one)],
            force_download=force_download,
        )
        return Path(got)

    at = f"{model}@{revision}" if revision else model
    try:
        folder = snapshot(SMALL + SAFE if weights else SMALL)
        where = folder if head else folder / inside
        if weights and not any(where.glob("model*.safetensors")) and not any(where.glob("0_*/model*.safetensors")):
            folder = snapshot(SMALL + PICKLED)
    except GatedRepoError:
        raise UserError(f"{at}: gated: accept its terms at https://huggingface.co/{model} and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{at}: neither a folder here nor a model on the hub; check the name, or set HF_TOKEN if it is private"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{model}: no branch, tag or commit {revision!r} on the hub") from None
    except LocalEntryNotFoundError as error:
        if local_files_only or constants.HF_HUB_OFFLINE:
            why = "downloads are off (HF_HUB_OFFLINE or local_files_only)"
        else:
            why = f"the hub cannot be reached ({_line(error.__cause__ or error)})"
        raise UserError(f"{at}: no folder here, not whole in the hub's cache, and {why}") from None
    except HFValidationError as error:
        raise UserError(f"{at}: not a hub id: {_line(error)}") from None
    except Exception as error:
        # The client raises its HTTP library's own errors; none of them is the user's doing.
        raise JobFailed(f"{at}: could not be downloaded from the hub: {_line(error)}") from error
    if inside and not (folder / inside).is_dir():
        raise UserError(f"{at}: no {inside} in it")
    return folder / inside


def fetch_url(
    url: str,
    *,
    cache_dir: str | Path | None,
    local_files_only: bool,
    weights: bool = True,
    into: Path | None = None,
) -> Path:
    """A copy of a prefix in the cache (or `into` a folder), under a name made of the files' etags: unchanged files are
    not fetched again.

    The endpoint and the credentials are the store's own (for S3 `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, …).
    Raises UserError, JobFailed.
    """
    from fsspec.core import url_to_fs

    if local_files_only:
        raise UserError(f"{url}: local_files_only, and an object store is not local")
    try:
        fs, prefix = url_to_fs(url.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: {_line(error)}") from None
    try:
        listed = _listing(fs, prefix, weights)
        if not listed:
            raise UserError(f"{url}: no checkpoint under this prefix (no config.json, no weights)")
        target = (into or cache_folder(cache_dir)) / _key(url, listed)
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        # One download a machine: the actors of a node ask for the same checkpoint at the same moment.
        with FileLock(target.with_suffix(".lock")):
            if not target.is_dir():
                _download(fs, prefix, listed, target)
                if _key(url, _listing(fs, prefix, weights)) != target.name:
                    shutil.rmtree(target)
                    raise JobFailed(f"{url}: changed while it was being downloaded; run again")
        return target
    except (UserError, JobFailed):
        raise
    except FileNotFoundError:
        raise UserError(f"{url}: no such bucket or prefix") from None
    except PermissionError as error:
        raise UserError(f"{url}: not allowed: {_line(error)}") from None
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "InvalidAccessKeyId"):
            raise UserError(f"{url}: {_line(error)}; set the store's credentials") from None
        raise JobFailed(f"{url}: could not be read: {_line(error)}") from error


def _listing(fs: Any, prefix: str, weights: bool) -> dict[str, dict[str, Any]]:
    """The files to fetch below a prefix: relative path -> the store's description of it."""
    fs.invalidate_cache()
    root = PurePosixPath(fs._strip_protocol(prefix))
    files = {
        str(PurePosixPath(path).relative_to(root)): info
        for path, info in fs.find(prefix, maxdepth=2, detail=True).items()
        if PurePosixPath(path) != root
    }

    def matching(patterns: list[str]) -> list[str]:
        kept = [path for path in files if not any(fnmatch(path, pattern) for pattern in IGNORE)]
        return [path for path in kept if any(fnmatch(path, pattern) for pattern in patterns)]

    chosen = matching(SMALL)
    if weights:
        chosen += matching(SAFE) or matching(PICKLED)
    return {path: files[path] for path in sorted(set(chosen))}


def _key(url: str, listed: dict[str, dict[str, Any]]) -> str:
    """A name for exactly these contents: etag where the store has one, time of change where not."""
    lines = [url.rstrip("/")]
    for path, info in listed.items():
        stamp = next(
            (info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if info.get(k)), ""
        )
        lines.append(f"{path} {info.get('size')} {stamp}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _download(fs: Any, prefix: str, listed: dict[str, dict[str, Any]], target: Path) -> None:
    temp = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        for path, info in listed.items():
            (temp / path).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(f"{prefix}/{path}", str(temp / path))
            size = (temp / path).stat().st_size
            if info.get("size") is not None and size != info["size"]:
                raise JobFailed(f"{prefix}/{path}: {size} bytes came, {info['size']} were listed; run again")
        temp.rename(target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
