"""The model that is trained: a checkpoint's encoder with a task's head, over packed sequences."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xlmr_ray.checkpoint.folder import ENCODER_DIGEST, read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.last_layer import rows_read
from xlmr_ray.model.dropout import train_with_cheap_dropout
from xlmr_ray.model.linear import train_with_onednn
from xlmr_ray.model.packed_batch import PackedBatch
from xlmr_ray.modeling.pretrained import Pretrained
from xlmr_ray.modeling.xlm_roberta import XLMRobertaModel
from xlmr_ray.tasks.task import EncoderTask
from xlmr_ray.train.objectives.objective import Objective

# The layers that depend on the labels.
ANEW = ("classifier", "qa_outputs")


@dataclass(frozen=True)
class Trained:
    """A `model` of one of transformers' classes; `head` has its modules that the task names, `fresh` says whether they
    began anew. `adapter` is peft's model around it, where only an adapter and the head are trained.
    """

    model: Pretrained
    head: nn.Module
    fresh: bool
    adapter: Any = None

    @property
    def base(self) -> XLMRobertaModel:
        base = self.model.base_model
        assert isinstance(base, XLMRobertaModel)
        return base

    @property
    def device(self) -> torch.device:
        return self.model.device

    def hidden(self, batch: PackedBatch, there: PackedBatch, task: EncoderTask) -> Tensor:
        """The last hidden states `(T, hidden)` of a batch, as far as the task reads them. The batch is in the CPU's
        memory, and `there` on the model's device.
        """
        rows = rows_read(batch, {task.reads})
        if rows is not None:
            # Once each: rows that are repeated to make up a number would have their gradients repeated, too.
            rows = torch.unique(rows).to(self.device)
        embedded = self.base.embeddings(there.input_ids, there.position_ids)
        out: Tensor = self.base.encoder(embedded, there.layout, rows=rows)
        return out


def load_trained(folder: Path, objective: Objective, *, seed: int, device: torch.device, frozen: bool) -> Trained:
    """The checkpoint in a folder with the objective's head: the checkpoint's own where it has this one with the same
    labels, else fresh weights, the same for the same seed. A `frozen` encoder is not trained.
    """
    fresh = not goes_on(folder, objective)
    config = copy.deepcopy(objective.config)
    config.extra.pop(ENCODER_DIGEST, None)
    config.attn_implementation = "auto"
    bare = False if objective.model_class is XLMRobertaModel else None
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a head is made anew is said by the caller
        model = objective.model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            device=device,
            ignore_mismatched_sizes=fresh,
            add_pooling_layer=bare,
        )
    head = objective.task.head()
    for name, _ in list(head.named_children()):
        owner = model if hasattr(model, name) else model.base_model
        child = owner.get_submodule(name)
        # Not a language model's head, whose last weight may be the word embeddings, nor a pooler, which may be trained.
        if fresh and name in ANEW:
            child.apply(model.init_weights)
        setattr(head, name, child)
    model.base_model.requires_grad_(not frozen)
    head.requires_grad_(True)
    if device.type == "cpu":
        train_with_onednn(model)
        train_with_cheap_dropout(model)
    return Trained(model, head, fresh)


def goes_on(folder: Path, objective: Objective) -> bool:
    """Whether the checkpoint's head is one for the objective: of its class, with its labels and kind of problem."""
    values = read_config(folder)
    kinds = [name.partition("For")[2] for name in values.get("architectures") or ()]
    if objective.model_class.__name__.partition("For")[2] not in kinds:
        return False
    before = XLMRobertaConfig.from_dict(values)
    same_problem = before.problem_type in (None, objective.config.problem_type)
    return before.labels == objective.config.labels and same_problem
