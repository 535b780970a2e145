"""Losses and weights of a training against transformers', and what the folder that comes out is."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from tests.models import add_tokenizer, make_config
from tests.train.conftest import LANGUAGES, TEXTS, record
from xlmr_ray import UserError, pipeline
from xlmr_ray.modeling import xlm_roberta

STEPS, RATE = 4, 1e-3
# One step an epoch, so that the order of examples does not matter.
PLAIN = {"epochs": STEPS, "batch_size": 100, "learning_rate": RATE, "warmup": 0.25, "weight_decay": 0.1}


def oracle(model, inputs: dict, steps: int = STEPS) -> list[float]:
    """The losses of a training by transformers' rules; the model is trained in place."""
    model.train()
    plain = [name for name, _ in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in plain], "weight_decay": 0.1},
        {"params": [p for name, p in model.named_parameters() if name in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.25 * steps), steps)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def tokenized(folder, *texts, **more) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizer(*texts, truncation=True, max_length=64, padding=True, return_tensors="pt", **more)


def assert_same(outcome, model, losses: list[float], inputs: dict, *, shifted: bool = False) -> None:
    """The same losses, and a checkpoint that transformers loads with the weights that it would have itself. Scores of
    choices or places may all be `shifted`: nothing depends on it, and AdamW makes steps of a gradient's rounding.
    """
    assert record(outcome)["losses"] == pytest.approx(losses, abs=1e-5)
    loaded = type(model).from_pretrained(outcome.folder).eval()
    inputs = {name: value for name, value in inputs.items() if not name.endswith(("labels", "positions"))}
    assert_same_logits(outcome.folder, loaded, inputs)
    with torch.no_grad():
        for mine, theirs in zip(loaded(**inputs).values(), model.eval()(**inputs).values(), strict=True):
            by = mine.mean() - theirs.mean() if shifted else 0.0
            torch.testing.assert_close(mine - by, theirs, atol=2e-3, rtol=2e-3)


def assert_same_logits(folder, loaded, inputs: dict) -> None:
    """A checkpoint gives the same logits by our class as by transformers' (`loaded`), wherever there is a token."""
    name = f"XLMRobertaFor{type(loaded).__name__.partition('For')[2]}"
    ours = getattr(xlm_roberta, name).from_pretrained(folder).eval()
    mask = inputs["attention_mask"].bool()
    with torch.no_grad():
        got, wanted = ours(**inputs), loaded(**inputs)
    assert set(got) == set(wanted)
    for key in wanted:
        pair = (got[key], wanted[key])
        mine, theirs = (one[mask] if one.shape[:2] == mask.shape else one for one in pair)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


CLASSIFIERS = {
    "single": ("single_label_classification", LANGUAGES),
    "multi": ("multi_label_classification", [[], ["de"], ["de", "fr"], ["en"], ["fr"], ["de", "en", "fr"]] * 2),
    "regression": ("regression", [0.5, -1.25, 2.0, 0.125, 3.5, 1.75] * 2),
}


@pytest.mark.parametrize("problem", CLASSIFIERS)
@pytest.mark.parametrize("max_tokens", ["auto", 40])
def test_text_classification_is_transformers(make_checkpoint, train, problem, max_tokens):
    kind, labels = CLASSIFIERS[problem]
    names = ["score"] if problem == "regression" else ["de", "en", "fr"]
    folder = make_checkpoint(
        "XLMRobertaForSequenceClassification",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type=kind,
    )
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    inputs = tokenized(folder, TEXTS)
    if problem == "single":
        inputs["labels"] = torch.tensor([names.index(label) for label in labels])
    elif problem == "multi":
        inputs["labels"] = torch.tensor([[float(name in own) for name in names] for own in labels])
    else:
        inputs["labels"] = torch.tensor(labels)
    outcome = train(
        {"text": TEXTS, "label": labels}, folder, task="text-classification", max_tokens=max_tokens, **PLAIN
    )
    assert record(outcome)["head"] == "from the checkpoint"
    assert_same(outcome, model, oracle(model, inputs), inputs)
    answers = pipeline("text-classification", outcome.folder, top_k=None, function_to_apply="none")(TEXTS)
    with torch.no_grad():
        logits = transformers.XLMRobertaForSequenceClassification.from_pretrained(outcome.folder).eval()(
            **{name: value for name, value in inputs.items() if name != "labels"}
        )[0]
    found = [[{one["label"]: one["score"] for one in answer}[name] for name in names] for answer in answers]
    np.testing.assert_allclose(found, logits, atol=1e-5)


def test_trainer(make_checkpoint, train, tmp_path):
    """Transformers' own Trainer, as a user would call it."""
    labels = [["de", "en", "fr"].index(label) for label in LANGUAGES]
    folder = make_checkpoint(
        "XLMRobertaForSequenceClassification",
        id2label={0: "0", 1: "1", 2: "2"},
        label2id={"0": 0, "1": 1, "2": 2},
        problem_type="single_label_classification",
    )
    inputs = tokenized(folder, TEXTS)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": label}
        for ids, mask, label in zip(inputs["input_ids"], inputs["attention_mask"], labels, strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=STEPS,
        per_device_train_batch_size=100,
        learning_rate=RATE,
        weight_decay=0.1,
        warmup_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    outcome = train({"text": TEXTS, "label": labels}, folder, task="text-classification", **PLAIN)
    assert record(outcome)["losses"] == pytest.approx(losses, abs=2e-4)  # it logs four digits
    assert_same(outcome, model, record(outcome)["losses"], inputs)


def test_rerank(make_checkpoint, train):
    folder = make_checkpoint("XLMRobertaForSequenceClassification", num_labels=1)
    labels = [1, 0, 0, 1] * 3
    pairs = TEXTS[::-1]
    model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
    inputs = tokenized(folder, TEXTS, pairs)
    # Binary cross-entropy, as a CrossEncoder of sentence-transformers is trained.
    model.config.problem_type = "multi_label_classification"
    inputs["labels"] = torch.tensor(labels, dtype=torch.float32)[:, None]
    rows = {"text": TEXTS, "text_pair": pairs, "label": labels}
    outcome = train(rows, folder, task="rerank", train={"text_pair": "text_pair"}, **PLAIN)
    assert_same(outcome, model, oracle(model, inputs), inputs)


def test_token_classification(make_checkpoint, train):
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    folder = make_checkpoint(
        "XLMRobertaForTokenClassification",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    texts = ["Ada Lovelace lived in London and Paris.", "In Paris lived Marie Curie.", "Nobody lives here."]
    spans = [
        [("PER", "Ada Lovelace"), ("LOC", "London"), ("LOC", "Paris")],
        [("LOC", "Paris"), ("PER", "Marie Curie")],
        [],
    ]
    entities = [
        [{"start": text.index(what), "end": text.index(what) + len(what), "label": kind} for kind, what in own]
        for text, own in zip(texts, spans, strict=True)
    ]
    inputs = tokenized(folder, texts, return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")
    labels = torch.full(inputs["input_ids"].shape, -100)
    for row, own in enumerate(entities):
        for place, (start, end) in enumerate(offsets[row].tolist()):
            if start == end:
                continue
            labels[row, place] = 0
            for entity in own:
                if start < entity["end"] and end > entity["start"]:
                    first = start <= entity["start"] < end
                    labels[row, place] = names.index(("B-" if first else "I-") + entity["label"])
    assert set(labels.flatten().tolist()) == {-100, 0, 1, 2, 3, 4}
    model = transformers.XLMRobertaForTokenClassification.from_pretrained(folder)
    inputs["labels"] = labels
    outcome = train({"text": texts, "label": entities}, folder, task="token-classification", max_tokens=20, **PLAIN)
    assert_same(outcome, model, oracle(model, inputs), inputs)
    # As JSON, which JSONL and CSV have, it is the same training.
    again = train(
        {"text": texts, "label": [json.dumps(own) for own in entities]},
        folder,
        task="token-classification",
        max_tokens=20,
        **PLAIN,
    )
    assert again.progress is None


def test_question_answering(make_checkpoint, train):
    folder = make_checkpoint("XLMRobertaForQuestionAnswering")
    # Of one length, as transformers' loss counts padding as places, too.
    contexts = [TEXTS[3]] * 3
    answers = [{"text": [word], "answer_start": [TEXTS[3].index(word)]} for word in ("", "Leben, Freiheit", "Person.")]
    answers[0] = {"text": [], "answer_start": []}
    inputs = tokenized(folder, ["What?"] * len(contexts), contexts, return_offsets_mapping=True)
    offsets = inputs.pop("offset_mapping")
    starts, ends = [0], [0]
    for row in range(1, len(contexts)):
        first = answers[row]["answer_start"][0]
        last = first + len(answers[row]["text"][0])
        middle = inputs["input_ids"][row].tolist().index(2)  # the end of the question
        inside = [
            place
            for place, (start, end) in enumerate(offsets[row].tolist())
            if place > middle and end > max(first, start) and start < last
        ]
        starts.append(inside[0])
        ends.append(inside[-1])
    inputs |= {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
    model = transformers.XLMRobertaForQuestionAnswering.from_pretrained(folder)
    rows = {"question": ["What?"] * len(contexts), "context": contexts, "answers": answers}
    columns = {"question": "question", "context": "context", "label": "answers"}
    outcome = train(rows, folder, task="question-answering", train=columns, **PLAIN)
    assert_same(outcome, model, oracle(model, inputs), inputs, shifted=True)


def test_multiple_choice(make_checkpoint, train):
    folder = make_checkpoint("XLMRobertaForMultipleChoice")
    texts, choices, labels = TEXTS[:4], [TEXTS[i : i + 3] for i in (4, 5, 6, 7)], [0, 2, 1, 1]
    flat = tokenized(folder, [text for text in texts for _ in range(3)], [one for own in choices for one in own])
    inputs = {name: value.view(4, 3, -1) for name, value in flat.items()}
    inputs["labels"] = torch.tensor(labels)
    model = transformers.XLMRobertaForMultipleChoice.from_pretrained(folder)
    rows = {"text": texts, "choices": choices, "label": labels}
    outcome = train(rows, folder, task="multiple-choice", train={"choices": "choices"}, max_tokens=150, **PLAIN)
    assert_same(outcome, model, oracle(model, inputs), inputs, shifted=True)


def test_embedding(make_checkpoint, train):
    """Against sentence-transformers' loss, with a prompt on either side; and the folder is one of its own."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    folder = make_checkpoint()
    prompts = {"text": "query: ", "text_pair": "passage: "}
    rows = {"text": TEXTS[:6], "text_pair": TEXTS[6:]}
    columns = {"text_pair": "text_pair"}
    outcome = train(rows, folder, task="embedding", train=columns, options={"prompts": prompts}, **PLAIN)
    model = SentenceTransformer(str(folder), device="cpu")
    loss = MultipleNegativesRankingLoss(model)
    sides = [
        model.tokenize([prompt + text for text in texts])
        for prompt, texts in zip(prompts.values(), rows.values(), strict=True)
    ]
    assert record(outcome)["losses"][0] == pytest.approx(float(loss(sides, None)), abs=1e-5)
    assert record(outcome)["losses"][-1] < record(outcome)["losses"][0]
    theirs = SentenceTransformer(str(outcome.folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(pipeline("embedding", outcome.folder)(TEXTS), theirs, atol=1e-5)


def test_fill_mask(make_checkpoint, train):
    """What is hidden is drawn, so the losses of transformers are those on the same tokens."""
    folder = make_checkpoint("XLMRobertaForMaskedLM")
    from xlmr_ray.train.objectives.fill_mask import FillMaskObjective

    seen = []
    epoch = FillMaskObjective.epoch

    def remembered(self, examples, seed):
        made = epoch(self, examples, seed)
        seen.append((examples, made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FillMaskObjective, "epoch", remembered)
        outcome = train({"text": TEXTS}, folder, task="fill-mask", max_tokens=60, **PLAIN)
    assert len(seen) == STEPS
    before, drawn = seen[0]
    changed = drawn.targets != -100
    assert 0.05 < changed.mean() < 0.3
    np.testing.assert_array_equal(drawn.targets[changed], before.input_ids[changed])
    np.testing.assert_array_equal(drawn.input_ids[~changed], before.input_ids[~changed])
    assert not np.array_equal(drawn.targets, seen[1][1].targets)
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(folder)
    rows = list(zip(drawn.row_splits[:-1], drawn.row_splits[1:], strict=True))
    width = max(end - start for start, end in rows)
    ids, labels = torch.full((len(rows), width), 1), torch.full((len(rows), width), -100)
    for row, (start, end) in enumerate(rows):
        ids[row, : end - start] = torch.from_numpy(drawn.input_ids[start:end])
        labels[row, : end - start] = torch.from_numpy(drawn.targets[start:end])
    expected = model(input_ids=ids, attention_mask=ids != 1, labels=labels).loss
    assert record(outcome)["losses"][0] == pytest.approx(float(expected), abs=1e-5)
    assert pipeline("fill-mask", outcome.folder)("All human <mask> are born free.")[0]["score"] > 0
    loaded = transformers.XLMRobertaForMaskedLM.from_pretrained(outcome.folder).eval()
    assert_same_logits(outcome.folder, loaded, tokenized(folder, TEXTS))


def test_a_new_head_where_labels_differ(make_checkpoint, train):
    """A head of the same size for other labels is none to go on with."""
    folder = make_checkpoint("XLMRobertaForSequenceClassification", num_labels=3)
    outcome = train({"text": TEXTS, "label": LANGUAGES}, folder, task="text-classification", **PLAIN)
    assert record(outcome)["head"] == "fresh"
    config = json.loads((outcome.folder / "config.json").read_text())
    assert config["id2label"] == {"0": "de", "1": "en", "2": "fr"}
    assert config["architectures"] == ["XLMRobertaForSequenceClassification"]


@pytest.mark.parametrize("kind", ["text-classification", "token-classification"])
def test_a_head_on_a_frozen_encoder(make_checkpoint, train, kind):
    """The same losses as transformers with the encoder's parameters frozen, and the encoder stays as it is."""
    if kind == "text-classification":
        names = ["de", "en", "fr"]
        folder = make_checkpoint(
            "XLMRobertaForSequenceClassification",
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
            problem_type="single_label_classification",
        )
        model = transformers.XLMRobertaForSequenceClassification.from_pretrained(folder)
        inputs = tokenized(folder, TEXTS)
        inputs["labels"] = torch.tensor([names.index(label) for label in LANGUAGES])
        labels: list = LANGUAGES
    else:
        names = ["O", "B-X", "I-X"]
        folder = make_checkpoint(
            "XLMRobertaForTokenClassification",
            id2label=dict(enumerate(names)),
            label2id={name: i for i, name in enumerate(names)},
        )
        model = transformers.XLMRobertaForTokenClassification.from_pretrained(folder)
        inputs = tokenized(folder, TEXTS)
        inputs["labels"] = torch.where(inputs["attention_mask"] == 1, 2, -100)
        inputs["labels"][:, 1] = 1
        special = (inputs["input_ids"] == 0) | (inputs["input_ids"] == 2)
        inputs["labels"][special] = -100
        labels = [[{"start": 0, "end": len(text), "label": "X"}] for text in TEXTS]
    model.roberta.requires_grad_(False)
    before = {name: p.clone() for name, p in model.roberta.named_parameters()}
    outcome = train({"text": TEXTS, "label": labels}, folder, task=kind, method="head", **PLAIN)
    assert_same(outcome, model, oracle(model, inputs), inputs)
    after = type(model).from_pretrained(outcome.folder).roberta
    assert all(torch.equal(p, before[name]) for name, p in after.named_parameters())


def test_a_head_beside_its_encoder(make_checkpoint, train, tmp_path):
    folder = make_checkpoint()
    outcome = train(
        {"text": TEXTS, "label": LANGUAGES},
        folder,
        output=str(folder / "heads" / "language"),
        task="text-classification",
        method="head",
        **{**PLAIN, "epochs": 60, "learning_rate": 0.01},
    )
    assert outcome.folder == folder / "heads" / "language"
    assert (outcome.folder / "model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size / 10
    answers = pipeline("text-classification", outcome.folder)(TEXTS)
    assert [answer["label"] for answer in answers] == LANGUAGES
    # To transformers it goes with its encoder.
    xlm_roberta.XLMRobertaForSequenceClassification.from_pretrained(outcome.folder).save_pretrained(tmp_path / "whole")
    loaded = transformers.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert_same_logits(outcome.folder, loaded, tokenized(folder, TEXTS))


@pytest.mark.parametrize(
    ("job", "rows", "words"),
    [
        ({"task": "text-classification"}, {"label": ["a"] * 12}, "all 12 rows have the label 'a'"),
        ({"task": "text-classification"}, {"label": ["a", None] * 6}, "row 1: column 'label' is null; 6 rows of 12"),
        ({"task": "text-classification", "train": {"label": "topic"}}, {"label": LANGUAGES}, "topic"),
        ({"task": "text-classification"}, {"label": ["0.5", "1"] * 6}, "problem: regression or single"),
        ({"task": "text-classification"}, {"label": [Decimal(1), Decimal(2)] * 6}, "problem: single or regression"),
        ({"task": "text-classification", "class_weights": {"x": 2}}, {"label": LANGUAGES}, "'x' is none of the labels"),
        ({"task": "rerank", "train": {"text_pair": "text"}}, {"label": [2] * 12}, "from 0 (does not answer) to 1"),
        ({"task": "rerank"}, {"label": [1] * 12}, "train.text_pair: the task reads it"),
        ({"task": "sparse"}, {"label": LANGUAGES}, "is not trained here"),
        ({"task": "text-clasification"}, {"label": LANGUAGES}, "did you mean 'text-classification'"),
        ({"task": "fill-mask", "method": "lora"}, {}, "not for task fill-mask"),
        ({"task": "text-classification", "lora": {"rank": 2}}, {"label": LANGUAGES}, "the method is full"),
        (
            {"task": "text-classification", "method": "lora", "lora": {"modules": ["querry"]}},
            {"label": LANGUAGES},
            "lora.modules: querry",
        ),
        ({"task": "fill-mask", "method": "head"}, {"label": LANGUAGES}, "method: full"),
        (
            {"task": "text-classification", "epoch": 2},
            {"label": LANGUAGES},
            "unknown key 'epoch', did you mean 'epochs'",
        ),
        (
            {"task": "token-classification"},
            {"label": [[{"start": 0, "end": 999, "label": "X"}]] * 12},
            "leaves the text",
        ),
    ],
)
def test_what_is_wrong_is_said(make_checkpoint, train, job, rows, words):
    with pytest.raises(UserError) as wrong:
        train({"text": TEXTS, **rows}, make_checkpoint(), **job)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)
    assert not any(text in str(wrong.value) for text in TEXTS)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (pa.array([["de"], ["en"], ["de"], ["fr"]] * 3, pa.list_(pa.string(), 1)), "multi_label_classification"),
        (pa.array([Decimal("0.5"), Decimal("1.25"), Decimal(2)] * 4, pa.decimal128(5, 2)), "regression"),
    ],
)
def test_the_labels_type_says_the_problem(make_checkpoint, train, labels, problem):
    """Lists of one length, as Datasets writes them, and decimals, as DuckDB does."""
    outcome = train({"text": TEXTS, "label": labels}, make_checkpoint(), task="text-classification", **PLAIN)
    assert transformers.AutoConfig.from_pretrained(outcome.folder).problem_type == problem


def test_what_is_not_of_the_labels_stays(make_checkpoint, train):
    """A checkpoint without the head: a language model's is made anew, and the word embeddings, tied to it, are not."""
    folder = make_checkpoint()
    outcome = train({"text": TEXTS}, folder, task="fill-mask", **{**PLAIN, "epochs": 1, "learning_rate": 1e-9})
    words = transformers.XLMRobertaModel.from_pretrained(folder).embeddings.word_embeddings.weight
    model = transformers.XLMRobertaForMaskedLM.from_pretrained(outcome.folder)
    torch.testing.assert_close(model.roberta.embeddings.word_embeddings.weight, words)
    torch.testing.assert_close(model.lm_head.decoder.weight, words)


@pytest.mark.parametrize("method", ["full", "head"])
def test_berts_layout(tmp_path, train, method):
    """As multilingual-e5-small is published: BERT's layers with XLM-R's tokenizer."""
    torch.manual_seed(13)
    names = ["de", "en", "fr"]
    config = transformers.BertConfig(
        vocab_size=make_config().vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=1,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type="single_label_classification",
    )
    folder = tmp_path / "bert"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    add_tokenizer(folder)
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    inputs = tokenized(folder, TEXTS)
    inputs.pop("token_type_ids", None)
    inputs["labels"] = torch.tensor([names.index(label) for label in LANGUAGES])
    if method == "head":
        model.bert.encoder.requires_grad_(False)
        model.bert.embeddings.requires_grad_(False)
    outcome = train({"text": TEXTS, "label": LANGUAGES}, folder, task="text-classification", method=method, **PLAIN)
    assert record(outcome)["head"] == "from the checkpoint"
    assert_same(outcome, model, oracle(model, inputs), inputs)
