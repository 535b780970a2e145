"""An encoder with its tasks' heads as shapes only: what is to be filled from the files, and whether they fit it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from xlmr_ray.checkpoint.folder import read_config
from xlmr_ray.checkpoint.match import match_tensors
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.model.heads import LMHead
from xlmr_ray.model.meta_device import shapes_only
from xlmr_ray.modeling.xlm_roberta import XLMRobertaForCausalLM, XLMRobertaModel
from xlmr_ray.tasks.task import EncoderTask, Task
from xlmr_ray.tasks.text_generation import TextGeneration


@dataclass(frozen=True)
class Unloaded:
    """`whole` has the encoder, `roberta`, and the heads that are filled together with it, which are `joined`; those
    `apart` are of another folder, or have another head's names. `heads` are all, one a task.
    """

    whole: nn.Module
    heads: list[nn.Module]
    joined: list[nn.Module]
    apart: list[tuple[nn.Module, Path]]


def unloaded(
    config: XLMRobertaConfig, folder: Path, tasks: Sequence[EncoderTask], head_folders: Sequence[Path] | None = None
) -> Unloaded:
    """The encoder of `folder` and the heads of some tasks, each from `head_folders` or from `folder`."""
    with shapes_only():
        whole = nn.Module()
        whole.roberta = XLMRobertaModel(config, add_pooling_layer=False)
    parts = Unloaded(whole, [task.head() for task in tasks], [], [])
    for head, place in zip(parts.heads, head_folders or [folder] * len(tasks), strict=True):
        names = dict(head.named_children())
        if not any(p.is_meta for p in head.parameters()):
            continue
        if place != folder or any(hasattr(whole, name) for name in names):
            parts.apart.append((head, place))
            continue
        parts.joined.append(head)
        for name, child in names.items():
            whole.add_module(name, child)
            tie(child, whole.roberta)
    return parts


def tie(module: nn.Module, base: XLMRobertaModel) -> None:
    """Makes the word embeddings a language modelling head's last linear layer, where the configuration ties them."""
    if isinstance(module, LMHead) and base.config.tie_word_embeddings:
        module.decoder.weight = base.embeddings.word_embeddings.weight


def check_weights(task: Task, folder: Path) -> None:
    """Raises what loading would for weights that do not fit `config.json`, or lack the task's head. Only the shapes are
    read, so that it can be said before a cluster starts.
    """
    config = XLMRobertaConfig.from_dict(read_config(folder))
    if isinstance(task, EncoderTask):
        match_tensors(unloaded(config, folder, [task]).whole, folder)
    elif isinstance(task, TextGeneration):
        with shapes_only():
            model = XLMRobertaForCausalLM(config)
        match_tensors(model, folder)
