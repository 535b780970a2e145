"""Linear layers over token states that lie in files beside the encoder: bge-m3's `sparse_linear.pt` and
`colbert_linear.pt`, and the modules of a multi-vector folder of sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xlmr_ray.checkpoint.sentence import MULTI_VECTOR, Dense, read_dense, read_modules, transformer_settings
from xlmr_ray.checkpoint.tensors import TensorFiles
from xlmr_ray.errors import UserError
from xlmr_ray.tokenizer.files import load_object

if TYPE_CHECKING:
    from torch import Tensor

SPARSE_FILE, MULTI_VECTOR_FILE = "sparse_linear.pt", "colbert_linear.pt"
TOKENS = "token_embeddings"  # what modules over tokens call their input
NAMES = ("", "linear.")  # before `weight` and `bias`: a layer's own state, or that of a module around it


@dataclass(frozen=True)
class TokenHead:
    """`x @ weight.T + bias` for each token: `weight (out, hidden)`, `bias (out,)` or None; fp32."""

    weight: Tensor
    bias: Tensor | None
    file: Path

    @property
    def width(self) -> int:
        return self.weight.shape[0]


@dataclass(frozen=True)
class MultiVectorModules:
    """What a sentence-transformers multi-vector folder does with token states: `head`, to length 1 if `normalize`,
    and without the tokens of `skipped` words; `prompts` by name, and at most `max_seq_length` tokens, of texts in
    small letters if `do_lower_case`.
    """

    head: TokenHead | None
    normalize: bool
    skipped: tuple[str, ...]
    prompts: Mapping[str, str]
    max_seq_length: int | None
    do_lower_case: bool


def read_token_head(folder: Path, name: str, hidden: int, width: int | None = None) -> TokenHead:
    """The layer in `folder/name`, a torch or safetensors file with `weight` and perhaps `bias`.

    Raises UserError where it is absent, holds something else, or has not `hidden` inputs (and `width` outputs).
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{folder}: head file {name!r} leads out of the folder")
    file = folder / name
    if not file.is_file():
        raise UserError(
            f"{folder}: no file {name}, the layer over token states; bge-m3 has it, for another checkpoint give "
            "head_file: FILE, a file of the folder with weight and bias"
        )
    tensors = TensorFiles([file])
    prefix = next((prefix for prefix in NAMES if f"{prefix}weight" in tensors.stored), None)
    if prefix is None:
        raise UserError(f"{file}: no tensor weight or linear.weight; got {', '.join(tensors.stored) or 'nothing'}")
    shape = tensors.stored[f"{prefix}weight"].shape
    if len(shape) != 2 or shape[1] != hidden or width not in (None, shape[0]):
        raise UserError(f"{file}: {prefix}weight: got shape {shape}, expected ({width or 'outputs'}, {hidden})")
    bias = None
    if f"{prefix}bias" in tensors.stored:
        if tensors.stored[f"{prefix}bias"].shape != shape[:1]:
            got = tensors.stored[f"{prefix}bias"].shape
            raise UserError(f"{file}: {prefix}bias: got shape {got}, expected {shape[:1]}")
        bias = tensors.read(f"{prefix}bias").float().clone()
    return TokenHead(tensors.read(f"{prefix}weight").float().clone(), bias, file)


def read_multi_vector_modules(folder: Path) -> MultiVectorModules | None:
    """The modules of a sentence-transformers multi-vector folder; None for a folder that is none.

    Raises UserError for a module or an option that would give other vectors than sentence-transformers if passed over.
    """
    modules = read_modules(folder)
    if modules is None or not any(kind == MULTI_VECTOR for kind, _ in modules):
        return None
    where = folder / "modules.json"
    order = [kind for kind, _ in modules]
    if order[0] != "Transformer" or order[-1] != MULTI_VECTOR or set(order[1:-1]) - {"Dense", "Normalize"}:
        raise UserError(
            f"{where}: got modules {', '.join(order)}, expected Transformer, any Dense, any Normalize, {MULTI_VECTOR}"
        )
    paths = dict(modules)
    if order.count("Dense") > 1 or (order.count("Dense") and order.count("Normalize") and order.index("Dense") > 1):
        raise UserError(f"{where}: got modules {', '.join(order)}, expected at most one Dense, before Normalize")
    mask = load_object(paths[MULTI_VECTOR] / "config.json")
    if mask.get("keep_only_token_ids"):
        raise UserError(f"{paths['MultiVectorMask']}/config.json: keep_only_token_ids is not supported")
    tasks = mask.get("skiplist_tasks", ["document"])
    skipped = tuple(map(str, mask.get("skiplist_words") or ())) if "document" in tasks else ()
    normalize = "Normalize" in paths
    if normalize:
        got = load_object(paths["Normalize"] / "config.json").get("module_input_name", "sentence_embedding")
        if got != TOKENS:
            raise UserError(f"{paths['Normalize']}/config.json: module_input_name: got {got!r}, expected {TOKENS!r}")
    if load_object(paths["Transformer"] / "sentence_bert_config.json").get("query_expansion"):
        raise UserError(f"{folder}: query_expansion is not supported: its queries would lack their mask tokens")
    head = None
    if "Dense" in paths:
        head = _of_dense(read_dense(paths["Dense"], level=TOKENS))
    given = load_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    prompts = {str(name): str(text) for name, text in given.items() if text is not None}
    return MultiVectorModules(head, normalize, skipped, prompts, *transformer_settings(paths["Transformer"]))


def _of_dense(dense: Dense) -> TokenHead:
    if dense.activation != "Identity":
        raise UserError(f"{dense.file.parent}: activation {dense.activation} over tokens is not supported")
    weight, bias = dense.tensors()
    return TokenHead(weight.float(), None if bias is None else bias.float(), dense.file)
