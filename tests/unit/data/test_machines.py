"""What is pinned: the machines that an autoscaler may add count, by type and up to the cluster's limit."""

import sys
from types import SimpleNamespace

import pytest

from data.machines import machines

CONFIG = """
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}}
  gpu: {resources: {CPU: 8, GPU: 1}, max_workers: 2}
  cpu: {resources: {CPU: 16}, max_workers: 9}
"""


@pytest.fixture
def one_machine(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(nodes=lambda: nodes))


def test_without_an_autoscaler_those_that_are_alive(one_machine, monkeypatch, tmp_path):
    monkeypatch.setattr("data.machines.AUTOSCALING", tmp_path / "none.yaml")
    assert machines() == [{"CPU": 4.0}]


def test_with_an_autoscaler_those_that_may_come(one_machine, monkeypatch, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setattr("data.machines.AUTOSCALING", tmp_path / "config.yaml")
    assert machines() == [{"CPU": 0}, *[{"CPU": 8, "GPU": 1}] * 2, *[{"CPU": 16}] * 3]
