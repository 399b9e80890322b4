"""Folders in the formats that a collection may come in, all of the same small one; and an S3 server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write files under names that may have slashes: `folder({"corpus.tsv": …})`; returns the folder."""

    def write(files: dict[str, str], name: str = "mine") -> Path:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    from pyarrow import fs

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "who")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "cares")
        fs.FileSystem.from_uri(f"s3://bucket?{query}")[0].create_dir("bucket")
        yield f"s3://bucket/{{}}/deep?{query}"
        server.stop()
