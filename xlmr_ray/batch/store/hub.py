"""Data sets of the Hugging Face hub, `hf://datasets/org/name@revision/path`, by huggingface_hub's own file system."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

_COMMIT = re.compile("[0-9a-f]{40}")


def hub_filesystem(options: Mapping[str, object] | None = None) -> HfFileSystem:
    """The hub, for reading. Listings are cached: only they have blobs' ids, and a commit does not change."""
    more: dict[str, Any] = dict(options or {})
    return HfFileSystem(**more)


def pinned(url: str, options: Mapping[str, object] | None = None) -> tuple[str, str]:
    """A URL with its revision, the default one where it names none, as the commit that it is now; and the repository at
    that commit. What has no revisions, a bucket, as it is. Raises FileNotFoundError.
    """
    fs = hub_filesystem(options)
    found = fs.resolve_path(url)
    if not isinstance(found, HfFileSystemResolvedRepositoryPath):
        return url, ""
    commit = found.revision
    if not _COMMIT.fullmatch(commit):
        api = HfApi(endpoint=fs.endpoint, token=fs.token)
        commit = str(api.repo_info(found.repo_id, repo_type=found.repo_type, revision=commit).sha)
    kind = "" if found.repo_type == "model" else f"{found.repo_type}s/"
    repository = f"hf://{kind}{found.repo_id}@{commit}"
    return f"{repository}/{found.path_in_repo}".rstrip("/"), repository
