"""Runs the tests of this folder in a small virtual machine with systemd and control groups (version 2), as root.

    python -m tests.guest [ARGUMENT OF PYTEST...]

With ISOWSGI_WHOLE=1 a limit of memory is reached 20 times in a row, which takes minutes, and all may take as long as a busy machine needs.

The machine is booted by a tool that lies beside this checkout, or where ISOWSGI_GUEST says; where it or qemu is missing, nothing is
tested, and that is said. The machine has Debian's Python 3.13 and no network, so this checkout and the packages of this process' venv are
copied into it; if this is Python 3.13 too, they are compiled here, where that takes a tenth of the time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TOOL = Path(os.environ.get("ISOWSGI_GUEST") or ROOT.parent / "shared" / "tools" / "guest")

# What the tool needs of the machine, and Debian's packages that the tests need of the guest.
PROGRAMS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs")
PACKAGES = "logrotate"

# Seconds from the boot on. It takes some 200 of processor time, 35 of them for the boot, as it is emulated; in CI it has what others leave.
LIMIT_S = os.environ.get("ISOWSGI_GUEST_S") or ("7200" if os.environ.get("ISOWSGI_WHOLE") else "800")


def missing() -> str:
    """Return what is missing for a guest; "" if nothing is."""
    if not os.access(TOOL, os.X_OK):
        return f"no {TOOL}"
    if os.geteuid() != 0:
        return "it needs root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return ", ".join(program for program in PROGRAMS if shutil.which(program, path=path) is None)


def main() -> int:
    if without := missing():
        print(f"skipped: {without}")
        return 0
    with tempfile.TemporaryDirectory(prefix="isowsgi-guest-") as folder:
        carried = Path(folder)
        shutil.copytree(sysconfig.get_path("purelib"), carried / "site")
        shutil.copytree(ROOT / "isowsgi", carried / "site" / "isowsgi")
        shutil.copytree(ROOT / "deploy", carried / "deploy")
        shutil.copytree(Path(__file__).parent, carried / "tests")
        if sys.version_info[:2] == (3, 13):
            subprocess.run([sys.executable, "-m", "compileall", "-q", carried / "site" / "isowsgi"], check=True)
        inner = [
            "env", f"PYTHONPATH={carried / 'site'}", f"ISOWSGI_WHOLE={os.environ.get('ISOWSGI_WHOLE', '')}",
            "python3", "-m", "pytest", "-q", "--color=no", "--tb=short", "-p", "no:cacheprovider",
            "--rootdir", folder, "-c", "/dev/null", str(carried / "tests" / "units.py"), *sys.argv[1:],
        ]  # fmt: skip
        tool = [str(TOOL), "--packages", PACKAGES, "--timeout", LIMIT_S, "--with", folder, "--", shlex.join(inner)]
        return subprocess.run(tool, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
