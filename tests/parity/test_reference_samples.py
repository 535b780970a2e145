"""The samples of the reference's document run here with the import and the checkpoint's path changed, and give what
they give in transformers.

Put back into them: the special tokens, which the document lost (`<mask>`), and a comma in the call of
BitsAndBytesConfig. Without a GPU, `device=0` is the CPU, and `flash_attention_2`, which is not there, is `sdpa`.
"""

import io
import os
import re
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

import xlmr_ray
from tests.models import add_tokenizer, make_config
from xlmr_ray.errors import UserError

# The reference's names, and ours where they differ.
NAMES = {
    "AutoConfig": "XLMRobertaConfig",
    "AutoModelForMaskedLM": "XLMRobertaForMaskedLM",
    "AutoTokenizer": "XLMRobertaTokenizer",
}

FILL_MASK_PIPELINE = """
import torch
from transformers import pipeline

pipeline = pipeline(
    task="fill-mask",
    model="FacebookAI/xlm-roberta-base",
    dtype=torch.float16,
    device=0
)
# Example in French
pipeline("Bonjour, je suis un modèle <mask>.")
"""

MASKED_LM_FP16 = """
from transformers import AutoModelForMaskedLM, AutoTokenizer
import torch

tokenizer = AutoTokenizer.from_pretrained(
    "FacebookAI/xlm-roberta-base"
)
model = AutoModelForMaskedLM.from_pretrained(
    "FacebookAI/xlm-roberta-base",
    dtype=torch.float16,
    device_map="auto",
    attn_implementation="sdpa"
)

# Prepare input
inputs = tokenizer("Bonjour, je suis un modèle <mask>.", return_tensors="pt").to(model.device)

with torch.no_grad():
    outputs = model(**inputs)
    predictions = outputs.logits

masked_index = torch.where(inputs['input_ids'] == tokenizer.mask_token_id)[1]
predicted_token_id = predictions[0, masked_index].argmax(dim=-1)
predicted_token = tokenizer.decode(predicted_token_id)

print(f"The predicted token is: {predicted_token}")
"""

QUANTIZED = """
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BitsAndBytesConfig

quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
    bnb_4bit_quant_type="nf4",  # or "fp4" for float 4-bit quantization
    bnb_4bit_use_double_quant=True,  # use double quantization for better performance
)
tokenizer = AutoTokenizer.from_pretrained("facebook/xlm-roberta-large")
model = AutoModelForMaskedLM.from_pretrained(
    "facebook/xlm-roberta-large",
    dtype=torch.float16,
    device_map="auto",
    attn_implementation="flash_attention_2",
    quantization_config=quantization_config
)

inputs = tokenizer("Bonjour, je suis un modèle <mask>.", return_tensors="pt").to(model.device)
outputs = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))
"""

CONFIGURATION = """
>>> from transformers import XLMRobertaConfig, XLMRobertaModel

>>> # Initializing a XLM-RoBERTa FacebookAI/xlm-roberta-base style configuration
>>> configuration = XLMRobertaConfig()

>>> # Initializing a model (with random weights) from the FacebookAI/xlm-roberta-base style configuration
>>> model = XLMRobertaModel(configuration)

>>> # Accessing the model configuration
>>> configuration = model.config
"""

CAUSAL_LM = """
>>> from transformers import AutoTokenizer, XLMRobertaForCausalLM, AutoConfig
>>> import torch

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/roberta-base")
>>> config = AutoConfig.from_pretrained("FacebookAI/roberta-base")
>>> config.is_decoder = True
>>> model = XLMRobertaForCausalLM.from_pretrained("FacebookAI/roberta-base", config=config)

>>> inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")
>>> outputs = model(**inputs)

>>> prediction_logits = outputs.logits
"""

MASKED_LM = """
>>> from transformers import AutoTokenizer, XLMRobertaForMaskedLM
>>> import torch

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForMaskedLM.from_pretrained("FacebookAI/xlm-mlm-en-2048")

>>> inputs = tokenizer("The capital of France is <mask>.", return_tensors="pt")

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> # retrieve index of <mask>
>>> mask_token_index = (inputs.input_ids == tokenizer.mask_token_id)[0].nonzero(as_tuple=True)[0]

>>> predicted_token_id = logits[0, mask_token_index].argmax(axis=-1)
>>> tokenizer.decode(predicted_token_id)
...

>>> labels = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
>>> # mask labels of non-<mask> tokens
>>> labels = torch.where(inputs.input_ids == tokenizer.mask_token_id, labels, -100)

>>> outputs = model(**inputs, labels=labels)
>>> round(outputs.loss.item(), 2)
...
"""

SINGLE_LABEL = """
>>> import torch
>>> from transformers import AutoTokenizer, XLMRobertaForSequenceClassification

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForSequenceClassification.from_pretrained("FacebookAI/xlm-mlm-en-2048")

>>> inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> predicted_class_id = logits.argmax().item()
>>> model.config.id2label[predicted_class_id]
...

>>> # To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
>>> num_labels = len(model.config.id2label)
>>> model = XLMRobertaForSequenceClassification.from_pretrained("FacebookAI/xlm-mlm-en-2048", num_labels=num_labels)

>>> labels = torch.tensor([1])
>>> loss = model(**inputs, labels=labels).loss
>>> round(loss.item(), 2)
...
"""

MULTI_LABEL = """
>>> import torch
>>> from transformers import AutoTokenizer, XLMRobertaForSequenceClassification

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForSequenceClassification.from_pretrained("FacebookAI/xlm-mlm-en-2048", problem_type="multi_label_classification")

>>> inputs = tokenizer("Hello, my dog is cute", return_tensors="pt")

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> predicted_class_ids = torch.arange(0, logits.shape[-1])[torch.sigmoid(logits).squeeze(dim=0) > 0.5]

>>> # To train a model on `num_labels` classes, you can pass `num_labels=num_labels` to `.from_pretrained(...)`
>>> num_labels = len(model.config.id2label)
>>> model = XLMRobertaForSequenceClassification.from_pretrained(
...     "FacebookAI/xlm-mlm-en-2048", num_labels=num_labels, problem_type="multi_label_classification"
... )

>>> labels = torch.sum(
...     torch.nn.functional.one_hot(predicted_class_ids[None, :].clone(), num_classes=num_labels), dim=1
... ).to(torch.float)
>>> loss = model(**inputs, labels=labels).loss
"""  # noqa: E501

MULTIPLE_CHOICE = """
>>> from transformers import AutoTokenizer, XLMRobertaForMultipleChoice
>>> import torch

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForMultipleChoice.from_pretrained("FacebookAI/xlm-mlm-en-2048")

>>> prompt = "In Italy, pizza served in formal settings, such as at a restaurant, is presented unsliced."
>>> choice0 = "It is eaten with a fork and a knife."
>>> choice1 = "It is eaten while held in the hand."
>>> labels = torch.tensor(0).unsqueeze(0)  # choice0 is correct (according to Wikipedia ;)), batch size 1

>>> encoding = tokenizer([prompt, prompt], [choice0, choice1], return_tensors="pt", padding=True)
>>> outputs = model(**{k: v.unsqueeze(0) for k, v in encoding.items()}, labels=labels)  # batch size is 1

>>> # the linear classifier still needs to be trained
>>> loss = outputs.loss
>>> logits = outputs.logits
"""

TOKEN_CLASSIFICATION = """
>>> from transformers import AutoTokenizer, XLMRobertaForTokenClassification
>>> import torch

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForTokenClassification.from_pretrained("FacebookAI/xlm-mlm-en-2048")

>>> inputs = tokenizer(
...     "HuggingFace is a company based in Paris and New York", add_special_tokens=False, return_tensors="pt"
... )

>>> with torch.no_grad():
...     logits = model(**inputs).logits

>>> predicted_token_class_ids = logits.argmax(-1)

>>> # Note that tokens are classified rather then input words which means that
>>> # there might be more predicted token classes than words.
>>> # Multiple token classes might account for the same word
>>> predicted_tokens_classes = [model.config.id2label[t.item()] for t in predicted_token_class_ids[0]]
>>> predicted_tokens_classes
...

>>> labels = predicted_token_class_ids
>>> loss = model(**inputs, labels=labels).loss
>>> round(loss.item(), 2)
...
"""

QUESTION_ANSWERING = """
>>> from transformers import AutoTokenizer, XLMRobertaForQuestionAnswering
>>> import torch

>>> tokenizer = AutoTokenizer.from_pretrained("FacebookAI/xlm-mlm-en-2048")
>>> model = XLMRobertaForQuestionAnswering.from_pretrained("FacebookAI/xlm-mlm-en-2048")

>>> question, text = "Who was Jim Henson?", "Jim Henson was a nice puppet"

>>> inputs = tokenizer(question, text, return_tensors="pt")
>>> with torch.no_grad():
...     outputs = model(**inputs)

>>> answer_start_index = outputs.start_logits.argmax()
>>> answer_end_index = outputs.end_logits.argmax()

>>> predict_answer_tokens = inputs.input_ids[0, answer_start_index : answer_end_index + 1]
>>> tokenizer.decode(predict_answer_tokens, skip_special_tokens=True)
...

>>> # target is "nice puppet"
>>> target_start_index = torch.tensor([14])
>>> target_end_index = torch.tensor([15])

>>> outputs = model(**inputs, start_positions=target_start_index, end_positions=target_end_index)
>>> loss = outputs.loss
>>> round(loss.item(), 2)
...
"""

# The samples, and the class whose checkpoint each loads.
SAMPLES = {
    "fill-mask pipeline": (FILL_MASK_PIPELINE, "XLMRobertaForMaskedLM"),
    "masked language model in fp16": (MASKED_LM_FP16, "XLMRobertaForMaskedLM"),
    "causal language model": (CAUSAL_LM, "XLMRobertaForCausalLM"),
    "masked language model": (MASKED_LM, "XLMRobertaForMaskedLM"),
    "single label": (SINGLE_LABEL, "XLMRobertaForSequenceClassification"),
    "multi label": (MULTI_LABEL, "XLMRobertaForSequenceClassification"),
    "multiple choice": (MULTIPLE_CHOICE, "XLMRobertaForMultipleChoice"),
    "token classification": (TOKEN_CLASSIFICATION, "XLMRobertaForTokenClassification"),
    "question answering": (QUESTION_ANSWERING, "XLMRobertaForQuestionAnswering"),
}
ALL = [*(sample for sample, _ in SAMPLES.values()), QUANTIZED, CONFIGURATION]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with random weights of a class, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(name))
            config = make_config(num_labels=3) if "Classification" in name else make_config()
            config.max_position_embeddings = 130
            config.is_decoder = name == "XLMRobertaForCausalLM"
            made[name] = tmp_path_factory.mktemp(name)
            getattr(transformers, name)(config).save_pretrained(made[name])
            add_tokenizer(made[name], max_length=128)
        return made[name]

    return make


def ours(sample: str) -> str:
    """The sample with its import changed."""

    def changed(match: re.Match[str]) -> str:
        names = [name.strip() for name in match[1].split(",")]
        return "from xlmr_ray import " + ", ".join(f"{NAMES[n]} as {n}" if n in NAMES else n for n in names)

    return re.sub("from transformers import (.*)", changed, sample)


def run(sample: str, folder: Path | None = None) -> dict[str, object]:
    """What is there after the sample has run on the folder's checkpoint: its variables, `printed`, and the `last`
    expression's value.
    """
    lines = sample.strip().splitlines()
    if lines[0].startswith(">>> "):
        # What is left out are expected results.
        lines = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
    code = re.sub(r'"(FacebookAI|facebook)/[\w-]+"', repr(str(folder)), "\n".join(lines))
    *body, last = code.splitlines()
    if re.match(r"\w+\(", last):
        code = "\n".join([*body, f"last = {last}"])
    if not torch.cuda.is_available():
        code = code.replace("device=0", "device=-1")
    found: dict[str, object] = {}
    with redirect_stdout(io.StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "<sample>", "exec"), found)
    return {**found, "printed": out.getvalue()}


def assert_same(name: str, got: object, wanted: object, atol: float) -> None:
    if isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(got, wanted, atol=atol, rtol=atol, msg=lambda text: f"{name}: {text}")
    elif isinstance(wanted, list | tuple):
        for one, other in zip(got, wanted, strict=True):
            assert_same(name, one, other, atol)
    elif isinstance(wanted, dict):
        assert set(got.keys()) == set(wanted), name
        for key in wanted:
            assert_same(name, got[key], wanted[key], atol)
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, abs=atol, rel=atol), name
    elif isinstance(wanted, str | int):
        assert got == wanted, name


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_gives_what_it_gives_in_transformers(checkpoint, name):
    sample, architecture = SAMPLES[name]
    folder = checkpoint(architecture)
    wanted, got = run(sample, folder), run(ours(sample), folder)
    atol = 2e-2 if "float16" in sample else 1e-5
    compared = [key for key in wanted if key != "__builtins__"]
    assert got.keys() == wanted.keys()
    for key in compared:
        assert_same(key, got[key], wanted[key], atol)


def test_the_sample_of_quantization(checkpoint):
    """Its `generate` is on a class that has none in transformers: here, the likeliest token each time."""
    pytest.importorskip("bitsandbytes")
    folder = checkpoint("XLMRobertaForMaskedLM")
    sample = ours(QUANTIZED)
    if not (torch.cuda.is_available() and find_spec("flash_attn")):
        with pytest.raises(UserError, match="attn_implementation flash_attention_2 needs"):
            run(sample, folder)
        sample = sample.replace("flash_attention_2", "sdpa")
    found = run(sample, folder)
    model, inputs, outputs = found["model"], found["inputs"], found["outputs"]
    assert type(model.roberta.encoder.layer[0].intermediate.dense).__name__ == "Linear4bit"
    prompt = inputs["input_ids"].shape[1]
    assert prompt < outputs.shape[1] <= prompt + 100
    ids = inputs["input_ids"]
    assert outputs[:, :prompt].equal(ids)
    positions = torch.arange(outputs.shape[1] - 1, device=ids.device)[None]
    with torch.no_grad():
        for place in range(prompt, min(outputs.shape[1], prompt + 5)):
            logits = model(outputs[:, :place], position_ids=positions[:, :place]).logits[0, -1]
            # Products in 16 bits may round otherwise here, where all logits are made: near the likeliest is enough.
            assert logits[outputs[0, place]] > logits.max() - 0.05
    assert found["printed"].strip() == found["tokenizer"].decode(outputs[0], skip_special_tokens=True).strip()


def test_the_sample_of_a_configuration():
    found = run(ours(CONFIGURATION))
    assert found["configuration"] is found["model"].config
    assert found["model"].num_parameters() == 109_482_240
    wanted = transformers.XLMRobertaConfig().to_dict()
    got = found["configuration"].to_dict()
    shared = {key: value for key, value in wanted.items() if key in got}
    assert len(shared) > 20
    assert {key: got[key] for key in shared} == shared


def test_these_are_all_the_samples_of_the_document():
    """Where the document is at hand: no sample is missing, and none differs by more than what was put back."""
    path = os.environ.get("XLMR_RAY_REFERENCE")
    if not path:
        pytest.skip("XLMR_RAY_REFERENCE names the document")
    blocks = re.findall(r"```python\n(.*?)```", Path(path).read_text("utf-8"), re.S)

    def plain(sample: str) -> str:
        # The document has lost what is in angle brackets, and never had one of the commas.
        return re.sub(r"<mask>|,(?=\n)", "", sample).strip()

    assert {plain(block) for block in blocks} == {plain(sample) for sample in ALL}


def test_every_name_of_the_samples_is_the_packages():
    used = {
        name.strip()
        for sample in ALL
        for names in re.findall("from transformers import (.*)", sample)
        for name in names.split(",")
    }
    assert {NAMES.get(name, name) for name in used} <= set(xlmr_ray.__all__)
