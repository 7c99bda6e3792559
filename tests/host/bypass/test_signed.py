"""Pictures that an armed server signs (C2PA), read by another Python than the one that wrote them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from safeguidance.headless.hosts import PACK_ROOT
from tests.host.bypass.armed import CUP, POLICY, ROOT, SKULL, Armed, start
from tests.host.bypass.graphs import plain, seeded

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
NEEDED = ("c2pa", "cryptography", "cffi", "_cffi_backend*", "pycparser", "toml", "requests")
SIGNED = '[evidence]\nc2pa = true\ncertificate = "{}"\nprivate_key = "{}"\n'
MAKE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.core.policy_certificates import signer
print(*signer(Path(sys.argv[2])), sep="\\n")
"""


def project_python():
    """The Python that runs the core tests, which has the extra ``evidence``."""
    return PACK_ROOT / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def policy(certificate, key):
    """The suite's policy, with signatures."""
    return POLICY.replace("[evidence]\n", SIGNED.format(certificate, key))


def asked(*arguments):
    done = subprocess.run(
        [str(project_python()), *map(str, arguments)], capture_output=True, text=True, cwd=str(PACK_ROOT)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def lent(tmp_path_factory):
    """A folder with c2pa-python and what it needs, as a host has them where somebody installs the extra."""
    place = Path(asked("-c", "import c2pa, pathlib; print(pathlib.Path(c2pa.__file__).parents[1])").strip())
    folder = tmp_path_factory.mktemp("lent")
    for name in NEEDED:
        for path in place.glob(name):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return asked("-c", MAKE, PACK_ROOT, tmp_path_factory.mktemp("keys")).splitlines()


@pytest.fixture(scope="module")
def signing(host, tmp_path_factory, lent, keys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYPASS_PATH", str(lent))
        with Armed(host, tmp_path_factory.mktemp("signing"), policy(*keys)) as server:
            yield server


@pytest.mark.parametrize(("text", "action"), [(CUP, "pass"), (SKULL, "guard")])
def test_a_saved_picture_is_signed_and_names_the_decision(signing, unarmed, text, action):
    import numpy

    graph = seeded(plain(text), 760)
    done = signing.draw(graph, "bob")
    assert done.status == "ok", done
    path = signing.base_dir / "output" / done.images[0]["filename"]
    said = json.loads(asked("-c", READ, ROOT, path))
    assert said["c2pa"]["state"] in ("Valid", "Trusted")
    digest = hashlib.sha256(signing.policy_path.read_bytes()).hexdigest()
    assert said["c2pa"]["assertions"]["org.safeguidance.policy"] == {"policy": digest, "action": action}
    assert said["safeguidance"]["action"] == action
    if action == "pass":
        assert numpy.array_equal(signing.pictures(done, "bob")[0], unarmed(graph)[0])
    # one changed pixel is noticed
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 1
    changed = path.with_name("changed.png")
    changed.write_bytes(bytes(content))
    assert json.loads(asked("-c", READ_C2PA, ROOT, changed))["state"] not in ("Valid", "Trusted")


READ = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from safeguidance.policy.evidence import read_back
print(json.dumps(read_back(Path(sys.argv[2]))))
"""
READ_C2PA = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from safeguidance.policy.manifest import read
print(json.dumps(read(Path(sys.argv[2]).read_bytes(), "image/png")))
"""


def test_a_server_that_is_to_sign_and_cannot_does_not_start(host, tmp_path, keys, lent):
    said = start(host, tmp_path / "without", policy(*keys), {"BYPASS_PATH": ""}, ())
    assert "stopped with exit code 1" in said
    assert "c2pa-python is not installed for this Python" in said
    swapped = start(host, tmp_path / "swapped", policy(keys[1], keys[0]), {"BYPASS_PATH": str(lent)}, ())
    assert "stopped with exit code 1" in swapped
    assert "evidence.certificate" in swapped
