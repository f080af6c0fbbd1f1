"""Uses packages in two mounts each, beside each other, while one of the two is reloaded; `make packages`.

`python -m tests.packages VENV [NAME...]`: a venv for each package is made at VENV-NAME. A line for each says where its apps live
under `auto`, how many requests were answered, and what went wrong. Some minutes for all; names choose.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.packages.run import RELOADS, use
from tests.packages.uses import USES


def main() -> int:
    venv, *names = sys.argv[1:]
    names = names or list(USES)
    failed = 0
    for name in names:
        command = [sys.executable, str(ROOT / "tools" / "make_venv.py"), sys.executable, f"{venv}-{name}", "--only-binary", ":all:"]
        made = subprocess.run([*command, *USES[name].requirements], capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{name}: not installed: {made.stderr.strip().splitlines()[-1:]}", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found, answered = use(name, f"{venv}-{name}", Path(folder))
            except (Exception, SystemExit) as exc:  # pytest.fail raises its own
                failed += 1
                print(f"{name}: FAILED: {exc}", flush=True)
            else:
                print(f"{name}: {', '.join(sorted(found))}: {answered} requests, {RELOADS + 1} reloads", flush=True)
    return min(failed, 99)


if __name__ == "__main__":
    sys.exit(main())
