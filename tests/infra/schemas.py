"""What a Kubernetes API would say: core kinds by `kubernetes-validate`, KubeRay's by their CRDs, with unknown fields
refused and the CRDs' own CEL rules run.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import celpy
import kubernetes_validate
import pytest
import yaml
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

Schema = dict[str, Any]
KUBERNETES = "1.31"  # the oldest that infra/README.md allows


def check(thing: dict[str, Any]) -> None:
    """Fails with the path to the first field that is wrong. Skips for KubeRay's kinds where their CRDs are not."""
    if thing["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(thing, KUBERNETES, strict=True)
        return
    schema = crd(thing["kind"])
    error = best_match(Draft202012Validator(strict(schema)).iter_errors(thing))
    assert error is None, f"{thing['kind']} {thing['metadata']['name']}: {error.json_path}: {error.message}"
    broken = list(broken_rules(thing, schema))
    assert not broken, broken


@lru_cache
def crd(kind: str) -> Schema:
    """The openAPIV3Schema of a kind of `ray.io/v1`."""
    folder = os.environ.get("XLMR_RAY_CRDS")
    if not folder:
        pytest.skip("XLMR_RAY_CRDS names no folder with KubeRay's CRDs")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load((Path(folder) / f"ray.io_{kind.lower()}s.yaml").read_text("utf-8"), loader)
    (version,) = [v for v in content["spec"]["versions"] if v["name"] == "v1"]
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema


def strict(schema: Any) -> Any:
    """An openAPIV3Schema as a JSON schema in which an object has no fields but the named ones."""
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-") and key != "format"}
    if schema.get("x-kubernetes-int-or-string"):
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = strict(out[key])
    if "properties" in out:
        out["properties"] = {name: strict(value) for name, value in out["properties"].items()}
        if "additionalProperties" not in out and not schema.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def broken_rules(value: Any, schema: Schema, path: str = "$") -> Iterator[str]:
    """The CEL rules of a schema that a new object breaks, in words. Those on `oldSelf` are for changes alone."""
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"]:
            continue
        if not compiled(rule["rule"]).evaluate({"self": json_to_cel(value)}):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, part in value.items():
            below = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(below, dict):
                yield from broken_rules(part, below, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for place, part in enumerate(value):
            yield from broken_rules(part, schema["items"], f"{path}[{place}]")


@lru_cache
def compiled(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
