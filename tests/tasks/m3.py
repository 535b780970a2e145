"""bge-m3 made small: its real layout with random weights, and what its documentation and paper say that it computes
(arXiv:2402.03216, section 3.2), by transformers' model with padding, as the oracle.
"""

from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from tests.models import add_tokenizer, make_config


def save_m3(folder: Path, width: int = 48, max_length: int = 64) -> Path:
    torch.manual_seed(21)
    encoder = folder / "encoder"
    transformers.XLMRobertaModel(make_config(max_position_embeddings=max_length + 2)).save_pretrained(encoder)
    add_tokenizer(encoder, max_length)
    parts = [modules.Transformer(str(encoder), max_seq_length=max_length), modules.Pooling(48, pooling_mode="cls")]
    made = folder / "m3"
    SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu").save(str(made))
    sparse, vectors = torch.nn.Linear(48, 1), torch.nn.Linear(48, width)
    torch.nn.init.normal_(sparse.weight, std=0.5)
    torch.save(sparse.state_dict(), made / "sparse_linear.pt")
    torch.save(vectors.state_dict(), made / "colbert_linear.pt")
    return made


class Oracle:
    def __init__(self, folder: Path) -> None:
        self.model = transformers.XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.sparse = torch.load(folder / "sparse_linear.pt", weights_only=True)
        self.vectors = torch.load(folder / "colbert_linear.pt", weights_only=True)
        t = self.tokenizer
        self.unused = [t.cls_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id]

    @torch.inference_mode()
    def __call__(self, texts: list[str], max_length: int = 64):
        """dense `(N, 48)`, a dictionary of weights a text, the vectors `(tokens - 1, width)` a text."""
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        hidden = self.model(**inputs).last_hidden_state
        dense = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
        weights = torch.relu(hidden @ self.sparse["weight"].T + self.sparse["bias"])[..., 0]
        projected = hidden[:, 1:] @ self.vectors["weight"].T + self.vectors["bias"]
        projected = torch.nn.functional.normalize(projected, dim=-1)
        lexical, multiple = [], []
        for row, count in enumerate(inputs["attention_mask"].sum(1).tolist()):
            found: dict[int, float] = {}
            for one, weight in zip(inputs["input_ids"][row].tolist(), weights[row].tolist(), strict=True):
                if one not in self.unused and weight > found.get(one, 0.0):
                    found[one] = weight
            lexical.append(found)
            multiple.append(projected[row, : count - 1])
        return dense, lexical, multiple

    def scores(self, pairs: list[tuple[str, str]], weights=(1.0, 1.0, 1.0)):
        found = []
        for query, passage in pairs:
            dense, lexical, multiple = self([query, passage])
            d = float(dense[0] @ dense[1])
            s = sum(weight * lexical[1].get(one, 0.0) for one, weight in lexical[0].items())
            c = float((multiple[0] @ multiple[1].T).max(1).values.mean())
            both = (weights[0] * d + weights[1] * s) / (weights[0] + weights[1])
            three = (weights[0] * d + weights[1] * s + weights[2] * c) / sum(weights)
            found.append({"dense": d, "sparse": s, "colbert": c, "sparse+dense": both, "colbert+sparse+dense": three})
        return found
