"""`xlmr-ray finetune`: labelled rows and a checkpoint to a trained checkpoint."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import encoder_folder, read_config
from xlmr_ray.config import XLMRobertaConfig
from xlmr_ray.engine.device import device_and_dtype, token_budget
from xlmr_ray.engine.memory import out_of_memory
from xlmr_ray.errors import JobFailed, UserError
from xlmr_ray.text.plural import plural, some
from xlmr_ray.text.progress_line import ProgressLine
from xlmr_ray.text.redact import redacted
from xlmr_ray.tokenizer.tokenizer import XLMRobertaTokenizer
from xlmr_ray.train.display import show_step
from xlmr_ray.train.frozen import frozen, frozen_engine
from xlmr_ray.train.job import FinetuneJob
from xlmr_ray.train.loop import ExamplePart, Loop
from xlmr_ray.train.lora import KINDS, peft_library, with_adapter
from xlmr_ray.train.model import Trained, load_trained
from xlmr_ray.train.objectives.objective import Examples, Objective
from xlmr_ray.train.objectives.registry import objective_class
from xlmr_ray.train.output import is_head, made_by, save_trained
from xlmr_ray.train.rows import WholeReader, read_rows, split_rows
from xlmr_ray.train.state import Progress, StateFolder, identity_of
from xlmr_ray.train.used_words import decay_of, keep_used, whole_words
from xlmr_ray.train.validated import validated

# Tokens computed at a time: activations are kept for the gradients.
MAX_TOKENS = {"cpu": 2048, "cuda": 16384}
# Keys of a job that change no digit of what is trained.
NO_MATTER = {"name", "output", "checkpoint_every", "train", "validation", "device", "cluster"}

# Goes through a training on the workers of a cluster, and keeps all that was done: see `batch/train_workers.py`. Raises
# as `run_loop` does.
OnWorkers = Callable[[Loop], None]


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training: where it is, and what was done, None where an earlier call had finished it."""

    folder: Path
    progress: Progress | None


@dataclass(frozen=True, eq=False)
class PreparedTraining:
    """A job's checkpoint, and its rows as examples."""

    folder: Path
    tokenizer: XLMRobertaTokenizer
    objective: Objective
    train: Examples
    validation: Examples | None
    skipped: int
    languages: list[str] | None  # of the validation's examples


def finetune(
    job: FinetuneJob, read: WholeReader, display: ProgressLine, on_workers: OnWorkers | None = None
) -> TrainOutcome:
    """Trains, or goes on with it where it stopped. Raises UserError, and JobFailed with what was done kept. With
    `on_workers` the job's `cluster` does, which is handed in, since this room knows of no Ray.
    """
    kind = objective_class(job.task)
    if job.method == "lora":
        peft_library()  # before anything is read
        if job.task not in KINDS:
            raise UserError(f"method: lora is for {', '.join(KINDS)}, not for task {job.task}")
    if job.method == "head" and not kind.frozen:
        raise UserError(f"method: head is nothing for task {job.task}, whose encoder is trained; say method: full")
    if job.class_weights is not None and not kind.class_weights:
        raise UserError(f"class_weights: task {job.task} has no classes to weigh")
    output = Path(job.output.path.removeprefix("file://")).expanduser()
    if "://" in job.output.path and not job.output.path.startswith("file://"):
        raise UserError(f"output.path: {job.output.path}: expected a folder of this machine; copy it from there")
    prepared = prepare_training(job, kind, read)
    objective, examples = prepared.objective, prepared.train
    device, _ = device_and_dtype(job.device, "auto")
    identity = identity_of(
        {
            "job": job.model_dump(exclude=NO_MATTER | (set() if job.method == "lora" else {"lora"})),
            "model": weights_digest(prepared.folder),
            "labels": objective.config.labels,
            "train": digest(examples),
            "validation": prepared.validation and digest(prepared.validation),
            "device": device.type,
        }
        # More of them add up in another order, and each has a dropout that no other has.
        | ({"workers": job.cluster.workers} if job.cluster.workers > 1 else {})
    )
    if (maker := made_by(output)) is not None:
        if maker != identity:
            raise UserError(f"output.path: {output} is there, made by another training; name another one or remove it")
        return TrainOutcome(output, None)
    if is_head(output, prepared.folder) and job.method != "head":
        raise UserError(f"output.path: {output}: a head beside its encoder is for method: head; name another folder")
    trained = load_trained(prepared.folder, objective, seed=job.seed, device=device, frozen=job.method == "head")
    if job.method == "lora":
        trained = with_adapter(trained, objective, job)
    words = None
    if job.method == "full" and not objective.any_token:
        parts = [examples] if prepared.validation is None else [examples, prepared.validation]
        words = keep_used(trained.model, [part.input_ids for part in parts])
    budget = token_budget(job.max_tokens, device, MAX_TOKENS)
    display.say(
        f"{plural(len(examples), 'example')} of {plural(int(examples.tokens.sum()), 'token')}"
        + (f", validation {len(prepared.validation):,}" if prepared.validation is not None else "")
        + (f", {plural(prepared.skipped, 'row')} skipped" if prepared.skipped else "")
        + f"; {'a new head' if trained.fresh else 'the head goes on'}, labels: {some(objective.config.labels, 12)}"
    )
    state = StateFolder.of(output, identity)
    state.try_room(kept_bytes(trained, job))
    train, validation = parts_of(job, prepared, display)
    loop = Loop(job, objective, trained, train, validation, state, budget, partial(show_step, display))
    if loop.resume():
        display.say(f"going on after step {loop.progress.step} of {loop.steps.count}")
    if on_workers is not None and job.cluster.workers > 1:
        on_workers(loop)
        loop.resume()
    run_loop(loop)
    try:
        held = None
        if validation is not None:
            outputs, answered, _ = loop.answers(validation)
            held = validated(objective, outputs, answered, prepared.languages)
        record = {
            "identity": identity,
            "job": json.loads(redacted(json.dumps(job.model_dump()))),
            "rows": {
                "train": len(examples),
                "validation": validation and len(validation.examples),
                "skipped": prepared.skipped,
            },
            "head": "fresh" if trained.fresh else "from the checkpoint",
            "history": loop.progress.history,
            "best": loop.progress.best,
            "losses": loop.progress.losses,
            "held": held,
            "seconds": round(loop.progress.seconds, 3),
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        best = loop.progress.best
        done = loop.progress.step if best is None else loop.progress.history[best]["step"]
        with whole_words(trained.model, words, decay_of(job, loop.steps, done)):
            save_trained(trained, objective, prepared.tokenizer, source=prepared.folder, output=output, record=record)
    except BaseException:  # whatever ends it, ^C too: what was trained is not lost
        loop.keep()
        raise
    state.remove()
    return TrainOutcome(output, loop.progress)


def run_loop(loop: Loop) -> None:
    """Runs it to its end. Raises JobFailed where the memory does not suffice, too."""
    try:
        loop.run()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise JobFailed(
            f"step {loop.progress.step + 1}: out of memory with {loop.max_tokens} tokens at a time; give a lower "
            "max_tokens"
        ) from None


def prepare_training(job: FinetuneJob, kind: type[Objective], read: WholeReader) -> PreparedTraining:
    """Reads the rows and makes examples of them."""
    folder = resolve(job.model)
    config = XLMRobertaConfig.from_dict(read_config(folder))
    if job.dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = job.dropout
        config.classifier_dropout = None
    tokenizer = XLMRobertaTokenizer.from_pretrained(encoder_folder(folder) or folder)
    roles = kind.roles(job)
    rows, skipped = read_rows(read, job.train, roles, label=kind.labelled)
    held, labelled = None, rows
    if job.validation is not None and job.validation.share is not None:
        rows, held = split_rows(rows, job.validation.share, job.seed)
    elif job.validation is not None and job.validation.path is not None:
        section = job.train.model_copy(update={"path": job.validation.path, "format": job.validation.format})
        held, more = read_rows(read, section, roles, label=kind.labelled, where="validation")
        skipped += more
    objective = kind.of(job, folder, config, labelled)
    train = objective.encode(rows, tokenizer)
    validation = None if held is None else objective.encode(held, tokenizer)
    languages = None
    if validation is not None and held is not None and "language" in held.column_names and len(held) == len(validation):
        languages = ["" if one is None else str(one) for one in held["language"].to_pylist()]
    return PreparedTraining(folder, tokenizer, objective, train, validation, skipped, languages)


def parts_of(
    job: FinetuneJob, prepared: PreparedTraining, display: ProgressLine
) -> tuple[ExamplePart, ExamplePart | None]:
    """The examples, for `method: head` with the vectors of their sequences."""
    if job.method != "head":
        return ExamplePart(prepared.train), None if prepared.validation is None else ExamplePart(prepared.validation)
    engine = frozen_engine(prepared.folder, prepared.objective.task, device=job.device, max_tokens=job.max_tokens)
    whole = [one for one in (prepared.train, prepared.validation) if one is not None]
    parts = [ExamplePart(*frozen(engine, one)) for one in whole]
    display.say(f"the encoder's vectors: {engine.stats.tokens:,} tokens in {engine.stats.seconds:,.1f} s")
    return parts[0], parts[1] if len(parts) > 1 else None


def kept_bytes(trained: Trained, job: FinetuneJob) -> int:
    """About what a state takes: what is trained, AdamW's two moments of it, and the best of it."""
    module = trained.head if job.method == "head" else trained.model
    own = sum(p.nbytes for p in module.parameters() if p.requires_grad)
    whole = sum(p.nbytes for p in module.parameters())
    return 2 * own + whole * (1 if job.early_stopping is None else 2)


def digest(examples: Examples) -> str:
    """A hash of all that the examples hold."""
    total = hashlib.sha256()
    for name, value in vars(examples).items():
        if value is not None:
            total.update(f"{name} {value.dtype} {value.shape}\n".encode())
            total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()
