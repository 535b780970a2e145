"""Whether a job would read its own output: the next launch would score the rows of this one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from xlmr_ray.batch.input.listing import fixed_part, is_hidden, is_pattern
from xlmr_ray.batch.store.filesystem import scheme_and_path
from xlmr_ray.errors import UserError
from xlmr_ray.text.redact import clean_url

KINDS = ("data", "errors")
# A file as a run writes it, below a kind's folder.
NAME = "0123456789abcdef/0000000-000000-0123456789abcdef.parquet"


def check_apart(paths: Sequence[str], output: str, *, entered: Iterable[str], keys: Iterable[str]) -> None:
    """Raises UserError where a file of the output would be one of the inputs in `paths`.

    `entered`: real paths of the folders on disk that the inputs were found in, those that links lead to included;
    `keys`: the inputs, as `Listed.same` has them, so that an earlier launch's output is seen whatever led to it. The
    folder of one run, `OUT/data/<run>`, may be read where the job names it: what it holds is finished.
    """
    scheme, out = _real(output)
    written = [f"{out}/{kind}/{NAME}" for kind in KINDS]
    named: list[str] = []
    for path in paths:
        other, where = _real(path)
        if other != scheme:
            continue
        fixed = fixed_part(where) if is_pattern(where) else where
        if fixed.startswith(tuple(f"{out}/{kind}/" for kind in KINDS)):
            named.append(fixed)
        elif any(_is_below(where, name) or _matches(where, name) for name in written):
            raise _inside(output, path)
    if scheme == "file" and any(_is_below(folder, name) for folder in entered for name in written):
        raise _inside(output, ", ".join(paths))
    for key in keys:
        other, where = scheme_and_path(key)
        is_ours = other == scheme and where.startswith(tuple(f"{out}/{kind}/" for kind in KINDS))
        if is_ours and not any(where == one or where.startswith(f"{one}/") for one in named):
            raise _inside(output, key)


def _inside(output: str, path: str) -> UserError:
    return UserError(
        f"output.path {clean_url(output)}: lies inside the input {clean_url(path)}, so the next launch would score "
        "this one's output; write to a folder outside the input, or to one whose name starts with _, which is not read"
    )


def _real(path: str) -> tuple[str, str]:
    """Scheme and path; on disk without links, as far as the path is no pattern."""
    scheme, where = scheme_and_path(path)
    if scheme != "file":
        return scheme, where
    if Path(where).exists() or not is_pattern(where):
        return scheme, os.path.realpath(where)
    fixed = fixed_part(where)
    return scheme, os.path.realpath(fixed or "/").rstrip("/") + where[len(fixed) :]


def _is_below(folder: str, name: str) -> bool:
    root = folder.rstrip("/") + "/"
    return name.startswith(root) and not is_hidden(name[len(root) :])


def _matches(pattern: str, name: str) -> bool:
    """Whether a glob finds the file: it, or a folder above it, matches."""
    fixed = fixed_part(pattern) if is_pattern(pattern) else pattern
    if not _is_below(fixed, name):
        return False
    return _match(pattern[len(fixed) :].strip("/").split("/"), name[len(fixed) :].strip("/").split("/"))


def _match(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not pattern
    if pattern[0] == "**":
        return _match(pattern[1:], parts) or _match(pattern, parts[1:]) if pattern[1:] else True
    return fnmatchcase(parts[0], pattern[0]) and _match(pattern[1:], parts[1:])
