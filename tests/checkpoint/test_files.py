import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.checkpoint.conftest import Make, reference, same
from tests.checkpoint.test_load import load, state
from xlmr_ray.checkpoint import fetch, files
from xlmr_ray.checkpoint.digest import weights_digest
from xlmr_ray.checkpoint.files import resolve
from xlmr_ray.checkpoint.folder import model_folder
from xlmr_ray.errors import JobFailed, UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fails(source: str | Path, message: str, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as e:
        resolve(source, **options)
    assert "\n" not in str(e.value)


def test_a_folder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    assert resolve(folder) == resolve(str(folder)) == resolve(f"file://{folder}") == folder
    monkeypatch.chdir(folder.parent)
    assert resolve("model").samefile(folder)
    odd = folder.rename(folder.parent / "mo@del")
    assert resolve(str(odd)) == odd


def test_a_folder_pinned_to_its_weights(make: Make) -> None:
    folder = make()
    digest = weights_digest(folder)
    assert resolve(f"{folder}@{digest[:12]}") == resolve(folder, revision=digest) == folder
    fails(f"{folder}@00000000", "expected 00000000: they changed")
    fails(f"{folder}@main", "@main: here a revision is the beginning of the weights' digest")
    fails(f"{folder}@abc12345", "two revisions", revision="main")


def test_what_is_no_checkpoint(make: Make, tmp_path: Path) -> None:
    fails(tmp_path / "none", "none: no such folder")
    fails("/no/such/folder", "/no/such/folder: no such folder")
    fails("./model", "./model: no such folder")
    fails("a/b/c", "a/b/c: no such folder")
    fails("", "an empty name")
    folder = make()
    fails(folder / "config.json", "config.json: a file, expected a checkpoint's folder")
    (folder / "config.json").unlink()
    fails(folder, r"model: no config.json, so this is no model folder; it holds model.safetensors")
    (folder / "config.json").write_text("{")
    fails(folder, "config.json: cannot be read as JSON")
    (folder / "config.json").write_text("[]")
    fails(folder, "expected a JSON object, got list")
    for kind in ("distilbert", "xlm-roberta-xl"):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        fails(folder, f"config.json: model_type is '{kind}', not an XLM-R model")
    for kind in ({"model_type": "camembert"}, {"model_type": "bert"}, {"model_type": "roberta"}, {}):
        (folder / "config.json").write_text(json.dumps(kind))
        assert resolve(folder) == folder
    (folder / "model.safetensors").unlink()
    looked = (
        "looked for model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json"
    )
    fails(folder, looked)
    (folder / "adapter_model.safetensors").write_text("")
    fails(folder, "merge it into its model first")
    (folder / "adapter_model.safetensors").rename(folder / "tf_model.h5")
    fails(folder, "TensorFlow or Flax weights")
    assert resolve(folder, weights=False) == folder


def test_embedded(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    monkeypatch.setattr(files, "__file__", str(package / "checkpoint" / "files.py"))
    shutil.copytree(make(), package / "assets" / "mini")
    assert resolve("embedded:mini") == package / "assets" / "mini"
    fails("embedded:maxi", "embedded:maxi: no such embedded checkpoint; there is embedded:mini")
    fails("embedded:../assets/mini", "no such embedded checkpoint")


def test_a_sentence_transformers_folder_with_the_model_inside(make: Make, tmp_path: Path) -> None:
    top = tmp_path / "top"
    shutil.copytree(make(), top / "0_Transformer")
    (top / "modules.json").write_text(json.dumps([{"idx": 0, "path": "0_Transformer", "type": "x.Transformer"}]))
    (top / "config.json").write_text(json.dumps({"__version__": "2.0.0"}))
    assert resolve(top) == top
    assert model_folder(top) == top / "0_Transformer"
    weights_digest(top)


# The hub, from a cache in its layout: nothing is asked of the network.


def cached(cache: Path, folder: Path, model: str = "team/model") -> Path:
    repo = cache / f"models--{model.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "v1").write_text(COMMIT)
    shutil.copytree(folder, repo / "snapshots" / COMMIT)
    return repo / "snapshots" / COMMIT


@pytest.mark.parametrize("as_bin", [False, True])
def test_a_hub_model_from_the_cache(make: Make, tmp_path: Path, as_bin: bool) -> None:
    snapshot = cached(tmp_path / "hub", make(as_bin=as_bin))
    for name in ("team/model", "team/model@v1", "team/model@main", f"team/model@{COMMIT}"):
        assert resolve(name, cache_dir=tmp_path / "hub", local_files_only=True).samefile(snapshot)
    assert resolve("team/model", revision="v1", cache_dir=tmp_path / "hub", local_files_only=True).samefile(snapshot)
    same(state(load(snapshot)[0]), state(reference()))


def test_a_hub_model_that_is_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fails(
        "team/model",
        r"team/model: no folder here, not whole in the hub's cache, and downloads are off",
        local_files_only=True,
        cache_dir=tmp_path,
    )
    fails("team/model@v9", r"team/model@v9: no folder here", local_files_only=True, cache_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fails("team/model", "downloads are off", cache_dir=tmp_path)


def hub_error(kind: str) -> Exception:
    import httpx2
    from huggingface_hub import errors

    response = httpx2.Response(403, request=httpx2.Request("GET", "https://hub.invalid"))
    made: Exception = getattr(errors, kind)("first line\nsecond line", response=response)
    return made


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "GatedRepoError",
            r"team/model@v1: gated: accept its terms at https://huggingface.co/team/model and set HF_TOKEN",
        ),
        ("RepositoryNotFoundError", "team/model@v1: neither a folder here nor a model on the hub"),
        ("RevisionNotFoundError", "team/model: no branch, tag or commit 'v1' on the hub"),
    ],
)
def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, kind: str, message: str) -> None:
    def refuse(*args: Any, **kwargs: Any) -> str:
        raise hub_error(kind)

    monkeypatch.setattr(fetch, "snapshot_download", refuse)
    fails("team/model@v1", message)


def test_a_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*args: Any, **kwargs: Any) -> str:
        raise LocalEntryNotFoundError("long\nstory") from ConnectionError("no route")

    monkeypatch.setattr(fetch, "snapshot_download", unreachable)
    fails("team/model", r"the hub cannot be reached \(ConnectionError: no route\)")

    def broken(*args: Any, **kwargs: Any) -> str:
        raise hub_error("HfHubHTTPError")

    monkeypatch.setattr(fetch, "snapshot_download", broken)
    with pytest.raises(
        JobFailed, match=r"team/model: could not be downloaded from the hub: HfHubHTTPError: first line second line"
    ):
        resolve("team/model")


@pytest.mark.parametrize("as_bin", [False, True])
def test_what_is_asked_of_the_hub(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_bin: bool) -> None:
    """Safetensors and the small files; `.bin` only in their place; no other runtime's weights, no training state."""
    from huggingface_hub.utils import filter_repo_objects

    wanted = {"config.json", "tokenizer.json", "1_Pooling/config.json", "2_Dense/model.safetensors"}
    weights = "pytorch_model.bin" if as_bin else "model.safetensors"
    unwanted = {"onnx/model.onnx", "onnx/config.json", "tf_model.h5", "optimizer.pt", "checkpoint-5/config.json"}
    repo = wanted | unwanted | {weights} | (set() if as_bin else {"pytorch_model.bin"})

    def download(model: str, **options: Any) -> str:
        got = filter_repo_objects(
            repo, allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]
        )
        for path in got:
            (tmp_path / "hub" / path).parent.mkdir(parents=True, exist_ok=True)
            source = make(as_bin=as_bin) / path
            (tmp_path / "hub" / path).write_bytes(source.read_bytes() if source.exists() else b"{}")
        return str(tmp_path / "hub")

    monkeypatch.setattr(fetch, "snapshot_download", download)
    folder = resolve("team/model")
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == wanted | {weights}
    shutil.rmtree(folder)
    resolve("team/model", weights=False)
    assert not (folder / weights).exists()


# An object store's prefix.


@pytest.fixture
def bucket(make: Make) -> Any:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for path in make().iterdir():
        memory.pipe(f"/bucket/model/{path.name}", path.read_bytes())
    memory.pipe("/bucket/model/1_Pooling/config.json", b"{}")
    memory.pipe("/bucket/model/checkpoint-9/config.json", b"{}")
    memory.pipe("/bucket/model/pytorch_model.bin", b"not to be fetched")
    yield memory
    memory.store.clear()


def test_a_prefix_is_fetched_once(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve("memory://bucket/model", cache_dir=tmp_path)
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {
        "config.json",
        "model.safetensors",
        "1_Pooling/config.json",
    }
    same(state(load(folder)[0]), state(reference()))
    real, fetched = fetch._download, []
    monkeypatch.setattr(fetch, "_download", lambda *args: fetched.append(args) or real(*args))
    assert resolve("memory://bucket/model/", cache_dir=tmp_path) == folder
    assert not fetched
    bucket.pipe("/bucket/model/1_Pooling/config.json", b"{ }")
    changed = resolve("memory://bucket/model", cache_dir=tmp_path)
    assert changed != folder
    assert (changed / "1_Pooling/config.json").read_bytes() == b"{ }"
    assert (folder / "1_Pooling/config.json").read_bytes() == b"{}"
    digest = weights_digest(folder)
    assert resolve(f"memory://bucket/model@{digest[:8]}", cache_dir=tmp_path) == changed
    fails("memory://bucket/model@deadbeef", "expected deadbeef", cache_dir=tmp_path)


def test_a_download_that_breaks_off_leaves_nothing(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(bucket).get_file

    def cut(self: Any, source: str, target: str, **options: Any) -> None:
        real(self, source, target, **options)
        if source.endswith("model.safetensors"):
            os.truncate(target, 100)

    with monkeypatch.context() as patch:
        patch.setattr(type(bucket), "get_file", cut)
        with pytest.raises(JobFailed, match=r"model.safetensors: 100 bytes came, \d+ were listed"):
            resolve("memory://bucket/model", cache_dir=tmp_path)
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]
    resolve("memory://bucket/model", cache_dir=tmp_path)


def test_a_prefix_that_changes_during_the_download(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fetch._download

    def slow(*args: Any) -> None:
        real(*args)
        bucket.pipe("/bucket/model/config.json", b'{"model_type": "xlm-roberta"}')

    monkeypatch.setattr(fetch, "_download", slow)
    with pytest.raises(JobFailed, match="changed while it was being downloaded"):
        resolve("memory://bucket/model", cache_dir=tmp_path)


def test_prefixes_that_hold_no_model(bucket: Any, tmp_path: Path) -> None:
    fails("memory://bucket/none", "memory://bucket/none: no", cache_dir=tmp_path)
    fails("zip3://bucket/model", "zip3://bucket/model: ValueError: Protocol not known", cache_dir=tmp_path)
    fails("memory://bucket/model", "local_files_only", local_files_only=True)
    bucket.rm("/bucket/model/model.safetensors")
    bucket.rm("/bucket/model/pytorch_model.bin")
    fails("memory://bucket/model", "no weights", cache_dir=tmp_path)


def test_where_the_cache_is(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLMR_RAY_CACHE", str(tmp_path / "own"))
    assert resolve("memory://bucket/model").is_relative_to(tmp_path / "own")
    monkeypatch.delenv("XLMR_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert resolve("memory://bucket/model").is_relative_to(tmp_path / "xdg" / "xlmr_ray")


def test_a_prefix_on_s3(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint and credentials come from the environment alone, as for every S3 client."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("bucket")
        folder = make()
        for path in folder.iterdir():
            store.put_file(str(path), f"bucket/models/one/{path.name}")
        got = resolve("s3://bucket/models/one", cache_dir=tmp_path / "cache")
        same(state(load(got)[0]), state(reference()))
        store.pipe_file("bucket/models/one/config.json", b'{"model_type": "t5"}')
        fails("s3://bucket/models/one", "model_type is 't5'", cache_dir=tmp_path / "cache")
        fails("s3://bucket/models/two", "s3://bucket/models/two: no", cache_dir=tmp_path / "cache")
        fails("s3://nobucket/models", "s3://nobucket/models: no", cache_dir=tmp_path / "cache")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
