"""Strict schemas: a CRD's, with unknown fields refused, and those of the other kinds that the manifests use, as far as
they use them.
"""

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT, "minItems": 1}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}


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


def record(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def whole(version: str, *required: str, **fields: Schema) -> Schema:
    """A schema of an object with its own fields beside the ones that every object has."""
    metadata = record(("name",), name=TEXT, labels=LABELS, annotations=LABELS)
    return record(
        ("apiVersion", "kind", "metadata", *required),
        apiVersion={"const": version},
        kind=TEXT,
        metadata=metadata,
        **fields,
    )


def core_kinds(pod: Schema) -> dict[str, Schema]:
    """By kind; `pod` is the schema of a pod template."""
    expression = record(
        ("key", "operator"), key=TEXT, operator={"enum": ["In", "NotIn", "Exists", "DoesNotExist"]}, values=TEXTS
    )
    selector = record(matchLabels=LABELS, matchExpressions=array(expression))
    peer = record(
        podSelector=selector,
        namespaceSelector=selector,
        ipBlock=record(("cidr",), cidr=TEXT, **{"except": TEXTS}),
    )
    port = record(protocol={"enum": ["TCP", "UDP"]}, port={"type": "integer", "minimum": 1, "maximum": 65535})
    failures = record(
        ("action",),
        action={"enum": ["FailJob", "Ignore", "Count", "FailIndex"]},
        onExitCodes=record(
            ("operator", "values"),
            containerName=TEXT,
            operator={"enum": ["In", "NotIn"]},
            values=array({"type": "integer"}),
        ),
        onPodConditions=array(record(("type",), type=TEXT, status=TEXT)),
    )
    count: Schema = {"type": "integer", "minimum": 0}
    job = record(
        ("template",),
        backoffLimit=count,
        activeDeadlineSeconds=count,
        podFailurePolicy=record(("rules",), rules=array(failures)),
        template=pod,
    )
    cron = record(
        ("schedule", "jobTemplate"),
        schedule={"type": "string", "pattern": r"^(\S+ ){4}\S+$"},
        timeZone=TEXT,
        concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
        startingDeadlineSeconds=count,
        successfulJobsHistoryLimit=count,
        failedJobsHistoryLimit=count,
        jobTemplate=record(("spec",), metadata=record(labels=LABELS), spec=job),
    )
    network = record(
        ("podSelector",),
        podSelector=selector,
        policyTypes=array({"enum": ["Ingress", "Egress"]}),
        ingress=array(record(**{"from": array(peer)}, ports=array(port))),
        egress=array(record(to=array(peer), ports=array(port))),
    )
    rbac = "rbac.authorization.k8s.io"
    return {
        "ConfigMap": whole("v1", "data", data=LABELS),
        "ServiceAccount": whole("v1", automountServiceAccountToken={"type": "boolean"}),
        "PodDisruptionBudget": whole(
            "policy/v1", "spec", spec=record(("minAvailable", "selector"), minAvailable=count, selector=selector)
        ),
        "NetworkPolicy": whole("networking.k8s.io/v1", "spec", spec=network),
        "CronJob": whole("batch/v1", "spec", spec=cron),
        "Role": whole(
            f"{rbac}/v1", "rules", rules=array(record(("verbs",), apiGroups=TEXTS, resources=TEXTS, verbs=TEXTS))
        ),
        "RoleBinding": whole(
            f"{rbac}/v1",
            "roleRef",
            "subjects",
            roleRef=record(("apiGroup", "kind", "name"), apiGroup={"const": rbac}, kind=TEXT, name=TEXT),
            subjects=array(record(("kind", "name"), kind=TEXT, name=TEXT)),
        ),
    }
