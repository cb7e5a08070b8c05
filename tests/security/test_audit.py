"""`make audit`: what it says of a tool that finds nothing, finds something, or reaches no database."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("says", "ends", "code"),
    [
        ("No known vulnerabilities found", 0, 0),
        ("Found 1 known vulnerability in 1 package", 1, 1),
        ("requests.exceptions.ConnectionError: Max retries exceeded with url: /pypi/x/json", 1, 3),
        ("ERROR:pip_audit._cli:x: Dependency not found on PyPI and could not be audited: x (1.0)", 1, 3),
        ("requests.exceptions.ProxyError: Unable to connect to proxy", 1, 3),
        ("pip_audit._service.interface.ServiceError: read timed out", 1, 3),
    ],
)
def test_a_database_that_is_not_reached_is_no_good_news(tmp_path, says, ends, code):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/audit", tmp_path / ".ci/audit")
    tool = tmp_path / ".cache/audit/bin/pip-audit"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {ends}\n")
    tool.chmod(0o755)
    done = subprocess.run(
        [tmp_path / ".ci/audit", "requirements.lock"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code and says in done.stderr
    assert ("nothing is known" in done.stderr) == (code == 3)
