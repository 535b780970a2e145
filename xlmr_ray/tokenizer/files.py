"""A tokenizer's folder: `tokenizer.json` or `sentencepiece.bpe.model`, and the JSON beside them."""

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import AddedToken, Tokenizer

from xlmr_ray.checkpoint.adapter_files import has_tokenizer
from xlmr_ray.checkpoint.folder import encoder_folder, has_adapter, model_folder
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.call.settings import Side
from xlmr_ray.tokenizer.sentencepiece import write_sentencepiece
from xlmr_ray.tokenizer.special_tokens import NAMED, Token, content, stored_token
from xlmr_ray.tokenizer.vocabulary import PreTokenizer

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "sentencepiece.bpe.model"
CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"


# Classes of transformers that take a `tokenizer.json` as it is; the others make a tokenizer of its vocabulary.
AS_FILED = ("PreTrainedTokenizer", "TokenizersBackend")
CAMEMBERT = "CamembertTokenizer"


class Settings(TypedDict, total=False):
    """The keyword arguments of `XLMRobertaTokenizer` that a folder may set, and a call of `from_pretrained` may too."""

    bos_token: Token | None
    eos_token: Token | None
    sep_token: Token | None
    cls_token: Token | None
    unk_token: Token | None
    pad_token: Token | None
    mask_token: Token | None
    extra_special_tokens: Any
    additional_special_tokens: Any
    added_tokens_decoder: dict[int, AddedToken]
    add_prefix_space: bool | None
    pre_tokenizer: PreTokenizer | None
    model_max_length: int | None
    padding_side: Side | None
    truncation_side: Side | None
    clean_up_tokenization_spaces: bool
    split_special_tokens: bool
    model_input_names: list[str]


def tokenizer_folder(folder: Path) -> Path:
    """Where a checkpoint's tokenizer is: in its folder, or for a head, and an adapter that brings none, in that of its
    encoder.
    """
    own = has_adapter(folder) and has_tokenizer(folder)
    return folder if own else encoder_folder(folder) or folder


def vocabulary_file(folder: Path, source: str) -> Path:
    """The file that the tokenizer is made of, in `folder` or in the model's folder within: `tokenizer.json` first."""
    for where in dict.fromkeys((folder, model_folder(folder))):
        for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE):
            if (where / name).is_file():
                return where / name
    check_kind(folder, source, "vocab.txt" if (folder / "vocab.txt").is_file() else "neither")
    raise UserError(f"{source}: no tokenizer in {folder}: looked for {TOKENIZER_FILE} and {SENTENCEPIECE_FILE}")


def check_kind(folder: Path, source: str, got: str) -> None:
    """Raises UserError for a checkpoint whose architecture is published with other tokenizers, too, and which has such
    a one.
    """
    model_type = load_object(model_folder(folder) / "config.json").get("model_type")
    if model_type in ("bert", "roberta"):
        raise UserError(
            f"{source}: a {model_type} checkpoint with another tokenizer than XLM-R's: got {got}, expected "
            f"{TOKENIZER_FILE} with a Unigram vocabulary or {SENTENCEPIECE_FILE}, as multilingual-e5-small has"
        )


def tokenizer_class(folder: Path) -> str:
    """The class of transformers that the folder names for its tokenizer, without "Fast"; XLMRobertaTokenizer where it
    names none.
    """
    model = load_object(folder / "config.json")
    named = load_object(folder / CONFIG_FILE).get("tokenizer_class") or model.get("tokenizer_class")
    usual = CAMEMBERT if model.get("model_type") == "camembert" else "XLMRobertaTokenizer"
    return str(named or usual).removesuffix("Fast")


def stored_settings(folder: Path) -> Settings:
    """What the files beside the vocabulary say.

    As in transformers, `special_tokens_map.json` goes before `tokenizer_config.json` unless that one lists the added
    tokens; a list of added tokens says how a special token is matched.
    """
    config = load_object(folder / CONFIG_FILE)
    listed = config.get("added_tokens_decoder")
    if listed is None:
        config |= load_object(folder / MAP_FILE)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = [stored_token(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    if listed is None:
        special = {str(content(token)) for token in (*extra, *(config.get(name) for name in NAMED)) if token}
        added = {
            index: AddedToken(token, special=token in special, normalized=token not in special)
            for token, index in load_object(folder / ADDED_FILE).items()
        }
    else:
        added = {int(index): _added(token) for index, token in listed.items()}
    settings = Settings()
    for name in NAMED:
        if name in config:
            token = stored_token(config[name])
            known = (one for one in added.values() if token is not None and one.content == content(token))
            settings[name] = next(known, token)  # type: ignore[literal-required]
    settings["extra_special_tokens"] = extra
    settings["added_tokens_decoder"] = added
    for name in ("padding_side", "truncation_side", "clean_up_tokenization_spaces", "split_special_tokens"):
        if config.get(name) is not None:
            settings[name] = config[name]  # type: ignore[literal-required]
    if isinstance(config.get("model_input_names"), list):
        settings["model_input_names"] = config["model_input_names"]
    if config.get("model_max_length"):
        settings["model_max_length"] = int(config["model_max_length"])
    by_json, kind = (folder / TOKENIZER_FILE).is_file(), tokenizer_class(folder)
    settings["pre_tokenizer"] = "file" if kind in AS_FILED else "xlm-roberta"
    # A tokenizer.json that is taken as it is has this in its own parts.
    if config.get("add_prefix_space") is not None and not (by_json and kind in AS_FILED):
        settings["add_prefix_space"] = bool(config["add_prefix_space"])
    if kind == CAMEMBERT:
        mask = settings.get("mask_token", "<mask>")
        settings["mask_token"] = AddedToken(mask, lstrip=True, special=True) if isinstance(mask, str) else mask
    return settings


def _added(token: dict[str, Any]) -> AddedToken:
    how = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in token}
    return AddedToken(token["content"], **how)


def load_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected an object, got {type(loaded).__name__}")
    return loaded


def save_tokenizer(backend: Tokenizer, folder: Path, config: dict[str, Any], prefix: str | None) -> tuple[str, ...]:
    """Write `tokenizer.json` and the two files of settings; the paths."""
    if folder.is_file():
        raise UserError(f"{folder}: expected a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix + '-' if prefix else ''}{name}" for name in (TOKENIZER_FILE, CONFIG_FILE, MAP_FILE)]
    backend.save(str(paths[0]))
    special = {name: config[name] for name in NAMED if config.get(name) is not None}
    for path, values in zip(paths[1:], (config, special), strict=True):
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tuple(map(str, paths))


def save_sentencepiece(
    backend: Tokenizer, made_of: Path | None, folder: Path, prefix: str | None, special: Sequence[str]
) -> str:
    """Copy the sentencepiece model that the tokenizer is made of, or write one of its vocabulary; the path.

    A normalizer other than the model's own character map is not in the file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder to save the vocabulary in")
    path = folder / f"{prefix + '-' if prefix else ''}{SENTENCEPIECE_FILE}"
    if made_of is not None and made_of.suffix == ".model" and made_of.is_file():
        if made_of.resolve() != path.resolve():
            shutil.copyfile(made_of, path)
        return str(path)
    spec = json.loads(backend.to_str())
    parts = (spec["normalizer"] or {}).get("normalizers") or [spec["normalizer"] or {}]
    charsmap = next((part["precompiled_charsmap"] for part in parts if "precompiled_charsmap" in part), "")
    entries = [(piece, score) for piece, score in spec["model"]["vocab"]]
    write_sentencepiece(path, entries, base64.b64decode(charsmap), special=special)
    return str(path)
