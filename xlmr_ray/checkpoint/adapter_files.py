"""What the folder of an adapter says itself of its use: a tokenizer, and the files and modules of
sentence-transformers, which goes by these and takes only weights and configuration from the base.
"""

import json
from pathlib import Path

from xlmr_ray.errors import UserError

VOCABULARIES = ("tokenizer.json", "sentencepiece.bpe.model")
TOKENIZER = (*VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MODULES = "modules.json"
SENTENCES = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json")


def own_files(folder: Path) -> dict[str, Path]:
    """The files, by their path in the folder. Raises UserError for a module whose path leads out of it."""
    names = (*(TOKENIZER if has_tokenizer(folder) else ()), *SENTENCES)
    found = {file.name: file for name in names for file in sorted(folder.glob(name))}
    for path in module_paths(folder) if MODULES in found else ():
        if path.startswith("/") or ".." in Path(path).parts:
            raise UserError(f"{folder / MODULES}: path {path!r} leads out of the folder")
        own = (file for file in sorted((folder / path).glob("*")) if file.is_file())
        found |= {f"{path}/{file.name}": file for file in own}
    return found


def module_paths(folder: Path) -> list[str]:
    """Where the modules are that follow the first."""
    try:
        return [str(module["path"]) for module in json.loads((folder / MODULES).read_text("utf-8"))[1:]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / MODULES}: cannot be read as a list of modules ({type(error).__name__})") from None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary in it."""
    return any((folder / name).is_file() for name in VOCABULARIES)
