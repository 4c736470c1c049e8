"""A broker from ops/nats/single.conf with users, set up by `admin init`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nats_deployment import Deployment
from tide_daemon import cli


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "single")
    deployment.start()
    yield deployment
    deployment.stop()


@pytest.fixture
def made(deployment: Deployment) -> Deployment:
    assert cli.main(["admin", "init", "--config", str(deployment.config_file("admin:a1"))]) == 0
    return deployment
