"""Checkpoints of BERT's layout with XLM-R's tokenizer, as multilingual-e5-small and paraphrase-multilingual-MiniLM are
published: transformers' Bert classes are the oracle.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import peft
import pyarrow as pa
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models

import xlmr_ray
from tests.models import TOKENIZER, add_tokenizer, save_e5_layout
from tests.parity.reference import TOLERANCE, close, inputs, inputs_for, same
from xlmr_ray import UserError, XLMRobertaConfig, XLMRobertaTokenizer, pipeline
from xlmr_ray.checkpoint.heads import save_head
from xlmr_ray.engine.engine import Engine
from xlmr_ray.engine.settings import EngineSettings
from xlmr_ray.serve.service import Service
from xlmr_ray.serve.settings import ServeSettings
from xlmr_ray.serve.task_request import TaskRequest
from xlmr_ray.tasks.registry import task_class

# Ours, and transformers' of the layout.
CLASSES = {
    "XLMRobertaModel": "BertModel",
    "XLMRobertaForMaskedLM": "BertForMaskedLM",
    "XLMRobertaForCausalLM": "BertLMHeadModel",
    "XLMRobertaForSequenceClassification": "BertForSequenceClassification",
    "XLMRobertaForTokenClassification": "BertForTokenClassification",
    "XLMRobertaForQuestionAnswering": "BertForQuestionAnswering",
    "XLMRobertaForMultipleChoice": "BertForMultipleChoice",
}
TEXTS = ["query: how much protein a day?", "Alle Menschen sind frei <mask>.  ", "<pad> 你好\n", "a <pad> b", "한국어"]


def reference(kind: str, **values: Any) -> Any:
    """Random weights, none as initialized; `hidden_act` is not GELU, so that the head's is seen to be the layers'."""
    torch.manual_seed(3)
    vocabulary = len(XLMRobertaTokenizer.from_pretrained(TOKENIZER))
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    labels = 2 if kind == "BertForQuestionAnswering" else 3
    given = {"vocab_size": vocabulary, "max_position_embeddings": 64, "hidden_act": "gelu_new", "num_labels": labels}
    config = transformers.BertConfig(**{**shape, **given, "is_decoder": kind == "BertLMHeadModel", **values})
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def saved(folder: Path, kind: str, **values: Any) -> Path:
    reference(kind, **values).save_pretrained(folder)
    return add_tokenizer(folder)


@pytest.mark.parametrize(("ours", "theirs"), CLASSES.items())
def test_every_class_computes_as_transformers_and_saves_what_it_reads(ours: str, theirs: str, tmp_path: Path) -> None:
    expected = reference(theirs)
    expected.save_pretrained(tmp_path / "theirs")
    model = getattr(xlmr_ray, ours).from_pretrained(tmp_path / "theirs")
    assert model.load_report.missing == model.load_report.unexpected == ()
    given = inputs_for(ours, expected.config, [7, 3, 5])
    given["input_ids"][0, ..., 2] = 0  # the padding id is a token as any other
    real = given["attention_mask"].bool()
    with torch.no_grad():
        same(model(**given), expected(**given), real)
        embedded = {key: x for key, x in given.items() if key != "input_ids"}
        embedded["inputs_embeds"] = model.get_input_embeddings()(given["input_ids"])
        same(model(**embedded), expected(**embedded), real)

    model.save_pretrained(tmp_path / "ours")
    written, read = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert written.keys() == read.keys()
    assert all(torch.equal(written[name], read[name]) for name in read)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bert", [theirs])
    again = getattr(transformers, theirs).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        same(model(**given), again(**given), real)


LABELS = {
    "XLMRobertaForMaskedLM": {"labels": torch.tensor([[5, -100, 7, 0, 3, 2]] * 2)},
    "XLMRobertaForSequenceClassification": {"labels": torch.tensor([2, 0])},
    "XLMRobertaForMultipleChoice": {"labels": torch.tensor([1, 0])},
}


@pytest.mark.parametrize("ours", LABELS)
def test_losses_and_gradients(ours: str, tmp_path: Path) -> None:
    """Of the heads that the layouts have in other ways."""
    expected = reference(CLASSES[ours], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected.save_pretrained(tmp_path)
    model = getattr(xlmr_ray, ours).from_pretrained(tmp_path)
    given = inputs_for(ours, expected.config, [6, 6])
    given["input_ids"][0, ..., 2] = 0  # whose row of the embeddings transformers does not train
    losses = [one(**given, **LABELS[ours]).loss for one in (model.train(), expected.train())]
    close(*losses)
    for loss in losses:
        loss.backward()
    got, wanted = ({name: p.grad for name, p in one.named_parameters()} for one in (model, expected))
    for name, gradient in wanted.items():
        if gradient is not None:
            here = re.sub("cls.predictions.(transform.)?", "lm_head.", name).replace(
                "lm_head.LayerNorm", "lm_head.layer_norm"
            )
            close(got[here], gradient, name)


@pytest.mark.parametrize("ours", CLASSES)
def test_the_tensors_of_a_file_go_into_a_model(ours: str, tmp_path: Path) -> None:
    """As transformers' Trainer goes on from a checkpoint."""
    reference(CLASSES[ours]).save_pretrained(tmp_path)
    wanted = getattr(xlmr_ray, ours).from_pretrained(tmp_path).state_dict()
    fresh = getattr(xlmr_ray, ours)(XLMRobertaConfig.from_pretrained(tmp_path))
    loaded = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not loaded.unexpected_keys
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in fresh.state_dict().items())


def test_adapters_of_peft_are_exchanged(tmp_path: Path) -> None:
    expected = reference("BertForSequenceClassification")
    expected.save_pretrained(tmp_path / "model")
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], init_lora_weights=False)
    adapted = peft.get_peft_model(expected, lora).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    ours = xlmr_ray.XLMRobertaForSequenceClassification.from_pretrained(tmp_path / "model")
    model = peft.PeftModel.from_pretrained(ours, tmp_path / "adapter").eval()
    given = inputs(expected.config, [7, 3])
    with torch.no_grad():
        close(model(**given).logits, adapted(**given).logits)


def test_generated_ids(tmp_path: Path) -> None:
    folder = saved(tmp_path, "BertLMHeadModel")
    theirs = transformers.BertLMHeadModel.from_pretrained(folder).eval()
    ours = xlmr_ray.XLMRobertaForCausalLM.from_pretrained(folder)
    given = inputs(theirs.config, [4, 4])
    del given["token_type_ids"]
    wanted = theirs.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=1)
    assert torch.equal(ours.generate(**given, max_new_tokens=12, do_sample=False, pad_token_id=1), wanted)


@pytest.mark.parametrize(
    ("task", "kind", "options"),
    [
        ("text-classification", "BertForSequenceClassification", {"top_k": None}),
        ("token-classification", "BertForTokenClassification", {"ignore_labels": []}),
        ("fill-mask", "BertForMaskedLM", {"top_k": 4}),
        ("feature-extraction", "BertModel", {}),
    ],
)
def test_pipelines(task: str, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(tmp_path, kind)
    texts = [f"{text} <mask>" for text in TEXTS if "<mask>" not in text] if task == "fill-mask" else TEXTS
    tokenizer = transformers.XLMRobertaTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    wanted = transformers.pipeline(task, model=model, tokenizer=tokenizer, **options)(texts)
    equal(pipeline(task, model=folder, **options)(texts), wanted)
    ours = {theirs: name for name, theirs in CLASSES.items()}[kind]
    in_memory = getattr(xlmr_ray, ours).from_pretrained(folder)
    given = XLMRobertaTokenizer.from_pretrained(folder)
    equal(pipeline(task, model=in_memory, tokenizer=given, **options)(texts), wanted)


def equal(got: Any, wanted: Any) -> None:
    """The same values, numbers within 1e-5; of mappings those keys that both have."""
    if isinstance(wanted, dict):
        for key in wanted.keys() & got.keys():
            equal(got[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            equal(one, other)
    elif isinstance(wanted, str) or wanted is None:
        assert got == wanted
    else:
        assert float(got) == pytest.approx(float(wanted), abs=TOLERANCE, rel=TOLERANCE)


def test_pairs_choices_and_answers(tmp_path: Path) -> None:
    pairs = [{"text": "a query", "text_pair": "what answers it"}, {"text": "你好", "text_pair": "<pad> no"}]
    tokenizer = XLMRobertaTokenizer.from_pretrained(TOKENIZER)

    folder = saved(tmp_path / "reranker", "BertForSequenceClassification", num_labels=1)
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    got = pipeline("rerank", model=folder, function_to_apply="none")(pairs)
    for score, pair in zip(got, pairs, strict=True):
        with torch.no_grad():
            wanted = theirs(**tokenizer(pair["text"], pair["text_pair"], return_tensors="pt")).logits
        assert score == pytest.approx(float(wanted), abs=TOLERANCE, rel=TOLERANCE)

    folder = saved(tmp_path / "choices", "BertForMultipleChoice")
    chooser = transformers.BertForMultipleChoice.from_pretrained(folder).eval()
    text, choices = "The cat sat", ["on the mat", "under <pad> it", "nowhere"]
    batch = tokenizer([text] * 3, choices, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = chooser(**{key: x[None] for key, x in batch.items()}).logits.softmax(-1)[0]
    (answer,) = pipeline("multiple-choice", model=folder)([{"text": text, "choices": choices}])
    close(torch.tensor(answer["scores"]), wanted)


def test_vectors(tmp_path: Path) -> None:
    """As many tokens as there are positions, of which none is left unused."""
    folder = save_e5_layout(tmp_path)
    texts = [*TEXTS, "word " * 200, "a"]
    table = pipeline("embedding", model=folder).table(texts)
    wanted = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(texts))
    close(torch.tensor(table["embedding"].to_pylist()), wanted)
    assert max(table["tokens"].to_pylist()) == 64


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForMultipleChoice", "BertForMaskedLM"])
def test_heads_beside_the_encoder(kind: str, tmp_path: Path) -> None:
    ours = {theirs: name for name, theirs in CLASSES.items()}[kind]
    whole = saved(tmp_path / "whole", kind)
    model = getattr(xlmr_ray, ours).from_pretrained(whole)
    model.base_model.save_pretrained(tmp_path / "encoder")
    head = save_head(model, tmp_path / "encoder", "mine")
    assert json.loads((head / "config.json").read_text())["architectures"] == [kind]
    again = getattr(xlmr_ray, ours).from_pretrained(head)
    given = inputs_for(ours, model.config, [5, 4])
    with torch.no_grad():
        same(again(**given), model(**given), torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantized_layouts_agree(quantization: str, tmp_path: Path) -> None:
    """The same layers as those of XLM-R's layout: so are their numbers in fewer bits."""
    folder = saved(tmp_path / "bert", "BertModel")
    model = xlmr_ray.XLMRobertaModel.from_pretrained(folder)
    config = XLMRobertaConfig.from_dict(
        {**model.config.to_dict(), "model_type": "xlm-roberta", "pad_token_id": 1, "max_position_embeddings": 66}
    )
    other = xlmr_ray.XLMRobertaModel(config)
    state = model.state_dict()
    places = "embeddings.position_embeddings.weight"
    other.load_state_dict({**state, places: torch.cat([torch.zeros(2, 48), state[places]])})
    other.save_pretrained(tmp_path / "xlm-r")
    add_tokenizer(tmp_path / "xlm-r")
    texts = [text for text in TEXTS if "<pad>" not in text]
    got, wanted = (torch.tensor(feature_extraction(tmp_path / name, quantization, texts)) for name in ("bert", "xlm-r"))
    assert torch.equal(got, wanted)


def feature_extraction(folder: Path, quantization: str, texts: list[str]) -> Any:
    task = task_class("embedding").bind(folder, XLMRobertaConfig.from_pretrained(folder), {"pooling": "cls"})
    engine = Engine.load(folder, [task], EngineSettings(device="cpu", quantization=quantization))
    encoded = task.prepare(pa.table({"text": texts}), XLMRobertaTokenizer.from_pretrained(folder))
    return engine.outputs([encoded])[0].table["embedding"].to_pylist()


def test_the_service(tmp_path: Path) -> None:
    folder = save_e5_layout(tmp_path)
    models = [{"model": str(folder), "name": "e5"}]
    service = Service.load(ServeSettings.model_validate({"models": models, "engine": {"threads": 1, "device": "cpu"}}))
    try:
        answer = asyncio.run(service.answer(TaskRequest("embedding", {"text": TEXTS})))
    finally:
        service.close()
    wanted = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS))
    close(torch.tensor(answer.table["embedding"].to_pylist()), wanted)


def test_types_of_a_pairs_tokens_are_refused(tmp_path: Path) -> None:
    """They would count in BERT's layout, and are not computed."""
    folder = saved(tmp_path, "BertForSequenceClassification", num_labels=1)
    spec = json.loads((folder / "tokenizer.json").read_text())
    for part in spec["post_processor"]["pair"][4:]:
        next(iter(part.values()))["type_id"] = 1
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    pipe = pipeline("text-classification", model=folder)
    assert len(pipe("one text")) == 1
    with pytest.raises(UserError, match=r"pairs: tokenizer.json gives tokens of the second text another type than 0"):
        pipe({"text": "a", "text_pair": "b"})


def test_other_tokenizers_and_layers_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "wordpiece"
    reference("BertModel").save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    with pytest.raises(UserError, match=r"wordpiece: a bert checkpoint with another tokenizer .* got vocab.txt"):
        pipeline("feature-extraction", model=folder)
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.save(str(folder / "tokenizer.json"))
    with pytest.raises(UserError, match=r"got tokenizer.json with a WordPiece vocabulary, expected"):
        pipeline("feature-extraction", model=folder)
    config = transformers.XLMRobertaXLConfig(num_hidden_layers=1)
    config.save_pretrained(tmp_path / "xl")
    with pytest.raises(UserError, match=r"model_type is 'xlm-roberta-xl', .*: it has its norms in front"):
        xlmr_ray.XLMRobertaModel.from_pretrained(tmp_path / "xl")


@pytest.mark.parametrize("kind", ["RobertaModel", "RobertaForSequenceClassification", "CamembertForMaskedLM"])
def test_xlm_rs_layers_under_other_names(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    family = "Roberta" if kind.startswith("Roberta") else "Camembert"
    config = getattr(transformers, f"{family}Config")(vocab_size=99, max_position_embeddings=40, **shape)
    theirs = getattr(transformers, kind)(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(xlmr_ray, kind.replace(family, "XLMRoberta")).from_pretrained(tmp_path / "theirs")
    given = inputs(config, [7, 3])
    real = given["attention_mask"].bool()
    ours.save_pretrained(tmp_path / "ours")
    again = getattr(transformers, f"AutoModel{kind.removeprefix(family).removeprefix('Model')}")
    again = again.from_pretrained(tmp_path / "ours").eval()
    assert type(again).__name__ == kind
    with torch.no_grad():
        same(ours(**given), theirs(**given), real)
        same(again(**given), theirs(**given), real)
