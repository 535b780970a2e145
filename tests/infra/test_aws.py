"""The configuration of `ray up`: one that Ray takes, with workers that may be taken away and ports that stay shut."""

import re

import pytest
import yaml
from jsonschema import ValidationError

from tests.infra.manifests import ROOT, read

FILE = ROOT / "infra" / "aws" / "cluster.yaml"


@pytest.fixture
def cluster():
    (content,) = read(FILE)
    return content


def test_ray_takes_it(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(cluster)
    validate_config(whole)
    assert whole["available_node_types"]["workers"]["min_workers"] == 2
    with pytest.raises(ValidationError, match="max_wokers"):
        validate_config({**whole, "max_wokers": 3})


def test_only_workers_are_spot_machines(cluster):
    types = cluster["available_node_types"]
    assert types["workers"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types[cluster["head_node_type"]]["node_config"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}


def test_nothing_is_open_but_ssh(cluster):
    (rule,) = cluster["provider"]["security_group"]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert all(entry["CidrIp"].endswith("/32") for entry in rule["IpRanges"])
    (start,) = [line for line in cluster["head_start_ray_commands"] if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in start
    for kind in cluster["available_node_types"].values():
        config = kind["node_config"]
        assert config["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])


def test_the_job_that_it_names_is_there():
    text = FILE.read_text("utf-8")
    folder, job = re.findall(r"--working-dir (\S+) -- xlmr-ray run (\S+)", text)[0]
    assert yaml.safe_load((ROOT / folder / job).read_text("utf-8"))["tasks"]
