"""Where a checkpoint is: what the user named -> a local folder that has been looked at."""

import re
from functools import partial
from pathlib import Path

from xlmr_ray.checkpoint.adapter import base_name, beside, is_adapter, merged_checkpoint
from xlmr_ray.checkpoint.adapter_files import has_tokenizer
from xlmr_ray.checkpoint.cache import cache_folder
from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.folder import HEADS, model_folder, read_config
from xlmr_ray.checkpoint.tensors import ADAPTER, find_weights
from xlmr_ray.errors import UserError

EMBEDDED = "embedded:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HEAD = re.compile(rf"(.+)/{HEADS}/([^/]+)/?")
WITH_ADAPTER = re.compile(r"(.+)\[(adapter|merged)=([^\[\]]+)\]")
DIGEST = re.compile(r"[0-9a-f]{8,64}")


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    weights: bool = True,
    subfolder: str = "",
    force_download: bool = False,
    tokenizer: bool = False,
) -> Path:
    """A local folder for what the user named, or for a `subfolder` of it.

    `source` is a folder, `embedded:NAME`, the URL of a prefix (`s3://…` or another fsspec store) or a hub id, or one of
    these with `/heads/NAME` for a head that was saved beside its encoder, or a LoRA adapter of peft's, whose base is
    named in its files: a checkpoint with the adapter in its weights is made, once; each but
    a `Path` may end in `@revision`. On the hub a revision is a branch, a tag or a commit. Folders and prefixes have no
    history: there it is the beginning (8 hex digits or more) of `weights_digest`, and the weights must have it.
    `BASE[merged=FOLDER]` is a base with the adapter of a folder in its weights, `BASE[adapter=FOLDER]` one with the
    adapter beside them, which what computes tasks of an encoder takes.

    `force_download` fetches anew what the hub's cache has; what comes from a store is always compared by its etags.
    `token` is the hub's; None is the one that `HF_TOKEN` or `hf auth login` set. With `weights=False` (only a
    configuration or a tokenizer) no weights are downloaded and the folder's content is not looked at; for an adapter it
    is the base's folder, or with `tokenizer` its own where it has one.
    Raises UserError, one line, when there is no such thing, it may not or cannot be had, or it is no XLM-R checkpoint.
    """
    name = str(source)
    if split := WITH_ADAPTER.fullmatch(name):
        found = resolve(
            split[1],
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            token=token,
            weights=weights,
            subfolder=subfolder,
            force_download=force_download,
        )
        folder = Path(split[3]).expanduser()
        if not is_adapter(folder):
            raise UserError(
                f"{folder}: no folder on this machine with an adapter of peft's ({ADAPTER} and its weights)"
            )
        if not weights:
            return found
        cache = cache_folder(cache_dir)
        return (
            beside(folder, found, cache) if split[2] == "adapter" else merged_checkpoint(folder, lambda _: found, cache)
        )
    inside = subfolder.strip("/")
    usual = revision == "main"  # scripts name the hub's usual branch wherever the checkpoint is
    if isinstance(source, str) and not Path(source).expanduser().exists():
        name, at = _split(source)
        if at and revision and at != revision:
            raise UserError(f"{source}: two revisions, {at!r} in the name and {revision!r} beside it: give one")
        revision = at or revision
    if not name:
        raise UserError("model: an empty name; give a folder, s3://…, a hub id or embedded:mini")
    hub = False
    here = _here(source, name)
    if here is not None:
        here = here / inside
    elif inside and "://" in name:
        name = f"{name.rstrip('/')}/{inside}"
    if here is None:
        # Every process of a run imports this file; few download.
        from xlmr_ray.checkpoint.fetch import fetch_hub, fetch_url
    if here is not None:
        folder = here
    elif "://" in name and (split := HEAD.fullmatch(name)):
        # The encoder once, whatever the number of its heads; they in its folder, as they are in the store.
        base = fetch_url(split[1], cache_dir=cache_dir, local_files_only=local_files_only, weights=weights)
        folder = fetch_url(
            name, cache_dir=cache_dir, local_files_only=local_files_only, weights=weights, into=base / HEADS
        )
    elif "://" in name:
        folder = fetch_url(name, cache_dir=cache_dir, local_files_only=local_files_only, weights=weights)
    elif HUB_ID.fullmatch(name) or ((split := HEAD.fullmatch(name)) and HUB_ID.fullmatch(split[1])):
        hub = True
        owner, _, head = name.partition(f"/{HEADS}/")
        folder = fetch_hub(
            owner,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=weights,
            inside=f"{HEADS}/{head}" if head else inside,
            force_download=force_download,
        )
    else:
        raise UserError(f"{name}: no such folder, and not the form of a hub id (owner/name)")
    if not folder.is_dir():
        what = "a file, expected a checkpoint's folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}")
    if is_adapter(folder):
        base_of = partial(resolve, cache_dir=cache_dir, local_files_only=local_files_only, token=token)
        if tokenizer and has_tokenizer(folder):
            return folder
        if not weights:
            return base_of(base_name(folder), weights=False)
        folder = merged_checkpoint(folder, base_of, cache_folder(cache_dir))
    if weights:
        where = model_folder(folder)
        read_config(where)
        find_weights(where)
        if revision and not usual and not hub:
            _check_digest(name, folder, revision)
    return folder


def _split(source: str) -> tuple[str, str | None]:
    """`name@revision` in its two parts. Only an @ in the last part of a path counts: s3 keys may have others."""
    head, slash, last = source.rpartition("/")
    name, at, revision = last.rpartition("@")
    # A hub revision may itself hold a slash (`refs/pr/1`).
    if not at and "://" not in source and "@" in source and HUB_ID.fullmatch(source.partition("@")[0]):
        whole, _, revision = source.partition("@")
        return whole, revision or None
    return (head + slash + name, revision or None) if at else (source, None)


def _here(source: str | Path, name: str) -> Path | None:
    """The folder on this machine that a checkpoint's name stands for, None where it is elsewhere."""
    local = Path(name).expanduser()
    if isinstance(source, Path) or local.exists():
        return local
    if name.startswith(EMBEDDED):
        return _embedded(name)
    return Path(name.removeprefix("file://")) if name.startswith("file://") else None


def _embedded(name: str) -> Path:
    assets = Path(__file__).parent.parent / "assets"
    folder = assets / name.removeprefix(EMBEDDED)
    there = [p.parent for pattern in ("*/config.json", f"*/{HEADS}/*/config.json") for p in assets.glob(pattern)]
    if folder not in there:
        known = ", ".join(sorted(EMBEDDED + str(p.relative_to(assets)) for p in there)) or "none"
        raise UserError(f"{name}: no such embedded checkpoint; there is {known}")
    return folder


def _check_digest(name: str, folder: Path, expected: str) -> None:
    if not DIGEST.fullmatch(expected):
        raise UserError(
            f"{name}@{expected}: here a revision is the beginning of the weights' digest, 8 to 64 hex digits"
        )
    got = weights_digest(folder)
    if not got.startswith(expected):
        raise UserError(
            f"{name}: got weights with digest {got[: max(len(expected), 12)]}, expected {expected}: they changed"
        )
