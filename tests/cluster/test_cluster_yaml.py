"""What is pinned: Ray itself accepts cluster.yaml, as it would in `ray up`, and refuses it with a mistake in it; and
what the file promises: a head that trains nothing, spot workers from none, the token and the store on every node."""

import copy
import shlex
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def written():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def prepared(written):
    return prepare_config(copy.deepcopy(written))


def test_ray_accepts_it(prepared):
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def misspelt_top(config):
    config["idle_timeout_minuts"] = config.pop("idle_timeout_minutes")


def misspelt_in_a_node_type(config):
    config["available_node_types"]["gpu"]["min_worker"] = 0


def a_head_that_is_not_there(config):
    config["head_node_type"] = "heads"


def more_workers_of_a_type_than_at_all(config):
    config["available_node_types"]["gpu"]["min_workers"] = 99


@pytest.mark.parametrize(
    "mistake",
    [misspelt_top, misspelt_in_a_node_type, a_head_that_is_not_there, more_workers_of_a_type_than_at_all],
)
def test_ray_refuses_it_with_a_mistake_in_it(written, mistake):
    mistake(written)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(written))


def test_the_head_trains_nothing_and_workers_are_spot_from_none(prepared):
    kinds = prepared["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == 0
    assert kinds["head"]["max_workers"] == 0
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    for name in ("gpu", "cpu"):
        assert kinds[name]["min_workers"] == 0
        assert 0 < kinds[name]["max_workers"] <= prepared["max_workers"]
        assert kinds[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["gpu"]["node_config"]["InstanceType"].startswith(("g5.", "g6."))
    assert prepared["idle_timeout_minutes"] > 0


def test_every_start_command_asks_for_the_token_and_sends_no_usage(prepared):
    for who in ("head", "worker"):
        commands = prepared[f"{who}_start_ray_commands"]
        assert len(commands) == 2  # Ray's own defaults would ask for no token
        assert all("RAY_AUTH_MODE=token" in command for command in commands)
        assert "RAY_USAGE_STATS_ENABLED=0" in commands[-1]
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][-1]


def test_the_store_is_mounted_on_head_and_workers_alike(prepared):
    for who in ("head", "worker"):
        setup = "\n".join(prepared[f"{who}_setup_commands"])
        assert "mount -t nfs4" in setup
        assert "efs.us-west-2.amazonaws.com:/ /mnt/stillhouse" in setup
    assert prepared["provider"]["region"] == "us-west-2"  # the region in the name of the file system


def test_what_is_mounted_from_here_is_here(prepared):
    local = [path for path in prepared["file_mounts"].values() if not path.startswith("~")]
    assert local == ["constraints.txt", "pyproject.toml"]
    assert all((ROOT / path).is_file() for path in local)


def test_commands_are_shell(prepared):
    for kind in ("head_setup", "worker_setup", "head_start_ray", "worker_start_ray"):
        for command in prepared[f"{kind}_commands"]:
            assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command


def test_the_set_up_reads_the_dependencies_of_pyproject(prepared, tmp_path):
    command = next(command for command in prepared["worker_setup_commands"] if "requirements.txt" in command)
    words = shlex.split(command)
    program = words[words.index("-c") + 1]
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    listed = subprocess.run(["python3", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "ray[data,train,tune]" in listed.splitlines()
    assert "torch" in listed.splitlines()
    assert "torch==2.13.0" in (tmp_path / "constraints.txt").read_text(encoding="utf-8").splitlines()
