"""Every manifest parses, every overlay builds, and what is built is valid, safe, consistent, and large enough."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.infra.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    SERVICES,
    Object,
    build,
    built,
    one,
    quantity,
    read,
    templates,
    the_rayjob,
)
from tests.infra.schemas import check
from xlmr_ray.batch.job import Job, check_job, with_setting

FILES = sorted(KUBERNETES.rglob("*.yaml"))
XLMR_BASE, XLMR_LARGE = 4 * 278_043_648, 4 * 559_890_432  # bytes of weights in fp32
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KUBERNETES)))
def test_files_parse(path):
    assert read(path)


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "kustomization.yaml"], ids=lambda p: p.parent.name)
def test_kustomizations_name_what_is_there(path):
    (content,) = read(path)
    named = [*content.get("resources", []), *content.get("components", []), *content.get("configurations", [])]
    named += [patch["path"] for patch in content.get("patches", []) if "path" in patch]
    named += [file for maps in content.get("configMapGenerator", []) for file in maps["files"]]
    missing = [name for name in named if not (path.parent / name).exists()]
    assert not missing
    # And nothing lies beside it that nothing names.
    beside = {entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".py")} - {path.name}
    assert beside <= {Path(name).name for name in named}


def test_the_base_is_valid_as_it_is_written():
    (rayjob,) = read(KUBERNETES / "base" / "rayjob.yaml")
    check(rayjob)


def test_the_schema_refuses_what_the_operator_would_drop():
    (rayjob,) = read(KUBERNETES / "base" / "rayjob.yaml")
    rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(AssertionError, match="hostNetwrok"):
        check(rayjob)


def test_the_rules_of_the_schema_are_run():
    (rayjob,) = read(KUBERNETES / "base" / "rayjob.yaml")
    rayjob["spec"]["managedBy"] = "somebody"
    with pytest.raises(AssertionError, match=r"spec\.managedBy"):
        check(rayjob)


def test_core_kinds_are_strict():
    (budget,) = read(KUBERNETES / "base" / "poddisruptionbudget.yaml")
    check(budget)
    budget["spec"]["minAvailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="minAvailabel"):
        check(budget)


@pytest.mark.parametrize("overlay", [*OVERLAYS, *SERVICES])
def test_what_is_built_is_valid(overlay):
    for thing in built(overlay):
        check(thing)
        assert "namespace" not in thing["metadata"]


@overlays
def test_pods_may_little(overlay):
    for thing in built(overlay):
        for name, template in templates(thing).items():
            pod = template["spec"]
            security = pod["securityContext"]
            assert security["runAsNonRoot"] is True, name
            assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod["automountServiceAccountToken"] is (name == "launcher")
            assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
            assert {tuple(set(volume) - {"name"}) for volume in pod["volumes"]} <= {("emptyDir",), ("configMap",)}
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert not {"ports", "livenessProbe"} & set(container)  # KubeRay's own are right


@overlays
def test_pods_say_what_they_take(overlay):
    for thing in built(overlay):
        for name, template in templates(thing).items():
            volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
            for container in template["spec"]["containers"]:
                requests, limits = (container["resources"][key] for key in ("requests", "limits"))
                assert set(requests) == set(limits) >= {"cpu", "memory", "ephemeral-storage"}, name
                assert all(quantity(requests[key]) <= quantity(limits[key]) for key in limits)
                mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
                assert set(mounts.values()) == set(volumes)
                if "/tmp" in mounts:
                    disk = quantity(volumes[mounts["/tmp"]]["emptyDir"]["sizeLimit"])
                    assert disk <= quantity(limits["ephemeral-storage"])
                else:
                    assert name == "launcher"  # writes nothing


@overlays
def test_the_object_store_fits_in_shared_memory_and_that_in_the_container(overlay):
    cluster = the_rayjob(built(overlay))["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
        pod = group["template"]["spec"]
        (shared,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
        assert shared["medium"] == "Memory"
        # Ray takes /dev/shm where it has more room than the store asks for, and a disk else.
        assert int(group["rayStartParams"]["object-store-memory"]) < quantity(shared["sizeLimit"])
        assert quantity(shared["sizeLimit"]) <= quantity(pod["containers"][0]["resources"]["limits"]["memory"]) / 3


def the_job(objects: tuple[Object, ...]) -> Job:
    """The job that the entry point runs: its file, from the ConfigMap that is mounted where it looks, and settings."""
    rayjob = the_rayjob(objects)
    program, command, path, *options = shlex.split(rayjob["spec"]["entrypoint"])
    assert (program, command) == ("xlmr-ray", "run")
    head = templates(rayjob)["head"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    (name,) = [v["configMap"]["name"] for v in head["volumes"] if v["name"] == mounts[str(Path(path).parent)]]
    content = yaml.safe_load(one(objects, "ConfigMap", name)["data"][Path(path).name])
    assert set(options[::2]) <= {"--set"}
    for setting in options[1::2]:
        content = with_setting(content, setting)
    return check_job(content, name)


@overlays
def test_the_job_file_is_one_that_xlmr_ray_takes(overlay):
    job = the_job(built(overlay))
    assert job.cluster.address == "auto"
    assert job.input.path == ["/opt/xlmr-ray/udhr/"]
    gpus = "nvidia.com/gpu" in str(the_rayjob(built(overlay)))
    assert (job.engine.device == "cuda") == gpus
    # What a worker writes to its own disk is lost; one pod may, and then needs no object store.
    alone = "workerGroupSpecs" not in the_rayjob(built(overlay))["spec"]["rayClusterSpec"]
    assert job.output.path.startswith("/tmp/") if alone else job.output.path.startswith("s3://")


@overlays
@pytest.mark.parametrize("weights", [XLMR_BASE, XLMR_LARGE], ids=["base", "large"])
def test_workers_carry_the_actors(overlay, weights):
    from xlmr_ray.batch import cluster as sizing

    if overlay == "cpu-demo":
        weights = 7 << 20  # the embedded checkpoint's
    objects = built(overlay)
    spec = the_rayjob(objects)["spec"]["rayClusterSpec"]
    groups = [(spec["headGroupSpec"], 1), *((group, group["replicas"]) for group in spec.get("workerGroupSpecs", []))]
    cpus, gpus, memory = [], [], 0.0
    for group, count in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        # What KubeRay tells `ray start`.
        cpus += [float(group["rayStartParams"].get("num-cpus", quantity(limits["cpu"])))] * count
        gpus += [quantity(limits.get("nvidia.com/gpu", 0))] * count
        memory += count * quantity(limits["memory"])
    job = the_job(objects)
    there = sizing.Resources(tuple(cpus), tuple(gpus), memory)
    size = sizing.cluster_sizes(there, job.cluster, job.engine.device, weights)

    asked = size.encoders * size.encoder_cpus + size.tokenizers * size.tokenizer_cpus + size.writers * 0.25
    assert asked <= sum(cpus)
    group, count = groups[-1]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    encoders = -(-size.encoders // count)
    others = -(-size.tokenizers // count) + -(-size.writers // count)
    # The CPUs are what holds back, or the GPUs: not a lack of memory.
    assert encoders == quantity(limits.get("nvidia.com/gpu", 0)) or size.encoders > sum(cpus) // 2
    needed = encoders * (weights + sizing.PROCESS_BYTES) + others * sizing.PROCESS_BYTES
    needed += int(group["rayStartParams"]["object-store-memory"])
    assert needed <= quantity(limits["memory"])


@overlays
def test_replicas_are_fixed(overlay):
    cluster = the_rayjob(built(overlay))["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    for group in cluster.get("workerGroupSpecs", []):
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] >= 1
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@overlays
def test_versions_are_the_packages(overlay):
    constraints = (ROOT / "constraints.txt").read_text("utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for thing in built(overlay):
        for template in templates(thing).values():
            for container in template["spec"]["containers"]:
                assert container["image"] in (f"xlmr-ray:{version}", f"xlmr-ray-cuda:{version}")
    cluster = the_rayjob(built(overlay))["spec"]["rayClusterSpec"]
    assert f"\nray=={cluster['rayVersion']}\n" in constraints
    assert cluster["authOptions"] == {"mode": "token"}


@overlays
def test_names_lead_somewhere(overlay):
    objects = built(overlay)
    there = {(thing["kind"], thing["metadata"]["name"]) for thing in objects}
    for thing in objects:
        for template in templates(thing).values():
            assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in there
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    assert ("ConfigMap", volume["configMap"]["name"]) in there
        if thing["kind"] == "RoleBinding":
            assert ("Role", thing["roleRef"]["name"]) in there
            assert all((subject["kind"], subject["name"]) in there for subject in thing["subjects"])
        if thing["kind"] == "RayJob":
            # The longest name that the operator takes, with a date and a time behind it.
            assert len(thing["metadata"]["name"] + "-20261122-0200") <= 47


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


@overlays
def test_every_pod_is_behind_a_policy(overlay):
    objects = built(overlay)
    policies = [thing["spec"] for thing in objects if thing["kind"] == "NetworkPolicy"]
    for thing in objects:
        for name, template in templates(thing).items():
            labels = template["metadata"]["labels"]
            (policy,) = [policy for policy in policies if selects(policy["podSelector"], labels)]
            assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
            for rule in policy["ingress"]:
                assert name != "launcher"
                for peer in rule["from"]:
                    if "namespaceSelector" in peer:
                        assert rule["ports"] == [{"protocol": "TCP", "port": 8265}]
                        assert "kuberay-operator" in peer["podSelector"]["matchLabels"].values()
                    else:
                        assert selects(peer["podSelector"], labels)
            for rule in policy["egress"]:
                for peer in rule["to"]:
                    if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                        assert peer["ipBlock"]["except"] == ["169.254.0.0/16"]
                        assert {port["port"] for port in rule["ports"]} <= (
                            {443, 6443} if name == "launcher" else {443}
                        )
                        assert overlay != "cpu-demo"
    head = templates(the_rayjob(objects))["head"]["metadata"]["labels"]
    budget = one(objects, "PodDisruptionBudget")["spec"]
    assert selects(budget["selector"], {**head, "ray.io/node-type": "head"})
    assert not selects(budget["selector"], {**head, "ray.io/node-type": "worker"})


@overlays
def test_a_schedule_has_a_template_that_does_not_run_itself(overlay):
    objects = built(overlay)
    rayjob = the_rayjob(objects)
    cronjobs = [thing for thing in objects if thing["kind"] == "CronJob"]
    queued = "kueue.x-k8s.io/queue-name" in rayjob["metadata"]["labels"]
    if not cronjobs:
        assert "suspend" not in rayjob["spec"]
        assert queued == (overlay == "kueue")
        return
    (cronjob,) = cronjobs
    assert rayjob["spec"]["suspend"] is True
    assert rayjob["spec"]["shutdownAfterJobFinishes"] is True  # the operator suspends no other
    assert not queued
    assert cronjob["spec"]["concurrencyPolicy"] == "Forbid"
    template = templates(cronjob)["launcher"]
    annotations = template["metadata"]["annotations"]
    assert annotations["xlmr-ray.template"] == rayjob["metadata"]["name"]
    assert ("xlmr-ray.queue" in annotations) == (overlay == "production")
    (role,) = [thing for thing in objects if thing["kind"] == "Role"]
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    # A launcher waits longer than a RayJob may run.
    job = cronjob["spec"]["jobTemplate"]["spec"]
    assert job["activeDeadlineSeconds"] > rayjob["spec"]["activeDeadlineSeconds"]
    (container,) = template["spec"]["containers"]
    given = {entry["name"] for entry in container["env"]} | {"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}
    (name,) = [v["configMap"]["name"] for v in template["spec"]["volumes"] if v["name"] == "launch"]
    program = one(objects, "ConfigMap", name)["data"][Path(container["command"][1]).name]
    assert set(re.findall(r'environ(?:\.get)?[\[(]"(\w+)"', program)) == given


def test_spot_keeps_the_head_where_the_workers_may_not_stay():
    pods = {name: template["spec"] for name, template in templates(the_rayjob(built("spot"))).items()}

    def terms(pod: Object) -> list[list[tuple[str, str, str]]]:
        required = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return [
            [(e["key"], e["operator"], e["values"][0]) for e in term["matchExpressions"]]
            for term in required["nodeSelectorTerms"]
        ]

    wanted = {(key, value) for ((key, operator, value),) in terms(pods["workers"]) if operator == "In"}
    (never,) = terms(pods["head"])
    assert {(key, value) for key, operator, value in never if operator == "NotIn"} == wanted
    assert {(entry["key"], entry["value"]) for entry in pods["workers"]["tolerations"]} == wanted
    assert "tolerations" not in pods["head"]


def test_production_has_all_components():
    (content,) = read(KUBERNETES / "overlays" / "production" / "kustomization.yaml")
    there = {folder.name for folder in (KUBERNETES / "components").iterdir()}
    # Of the two ways to a schedule it has the one that waits.
    assert {Path(component).name for component in content["components"]} == there - {"raycronjob"}
    assert there == set(OVERLAYS) - {"production", "cpu-demo"}


def test_the_readme_s_overlay_builds(tmp_path):
    readme = (ROOT / "infra" / "README.md").read_text("utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    mine = tmp_path / "kubernetes" / "overlays" / "topics"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(text)
    job = (ROOT / "pipelines" / "embed.yaml").read_text("utf-8")
    (mine / "job.yaml").write_text(job)
    objects = build(mine)
    names = {thing["metadata"]["name"] for thing in objects}
    assert all(name.startswith("topics-xlmr-ray") for name in names)
    assert {thing["metadata"]["namespace"] for thing in objects} == {"labels"}
    assert the_job(objects).name == "embed"
    rayjob = the_rayjob(objects)
    assert rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 8
    assert {template["spec"]["serviceAccountName"] for template in templates(rayjob).values()} == {"topics-xlmr-ray"}
    launcher = templates(one(objects, "CronJob"))["launcher"]
    assert launcher["metadata"]["annotations"]["xlmr-ray.template"] == "topics-xlmr-ray"
    images = {c["image"] for t in (*templates(rayjob).values(), launcher) for c in t["spec"]["containers"]}
    assert images == {f"registry.example.com/ml/{name}:0.1.0" for name in ("xlmr-ray", "xlmr-ray-cuda")}


def test_the_readme_names_every_overlay():
    readme = (ROOT / "infra" / "README.md").read_text("utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", readme, re.M)) == {*OVERLAYS, *SERVICES}
