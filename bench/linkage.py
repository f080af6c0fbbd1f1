"""How a server that has Python inside is built and started for a Python that lies elsewhere than it was built for.

Such are a distribution's packages unpacked beside the system's own, with a C library and loader of their own, and what pyenv builds.
For the system's Python it changes nothing: the paths are those that compiler and loader would have taken.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

# Asked of the Python itself; its loader is what the kernel mapped to run it.
_QUESTION = """
import json, os, sys, sysconfig
library = os.path.join(sys.base_prefix, "lib")
places = [os.path.join(library, sysconfig.get_config_var("MULTIARCH") or "."), library]
with open("/proc/self/maps") as maps:
    loader = next(line.split()[-1] for line in maps if "/ld-" in line)
headers = os.path.dirname(sysconfig.get_path("include"))
print(json.dumps([loader, [place for place in places if os.path.isdir(place)], headers]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linkage:
    """
    Attributes:
        loader: the program that loads the Python's programs.
        libraries: folders of its libraries, the C library included.
        headers: the folder that is /usr/include to it.
    """

    loader: str
    libraries: tuple[str, ...]
    headers: str

    @property
    def build_environ(self) -> dict[str, str]:
        """Variables for compilers. RPATH, not RUNPATH: libraries that libpython needs are found by it too."""
        flags = [f"--dynamic-linker={self.loader}", "--disable-new-dtags", "--allow-shlib-undefined"]
        flags += [f"-rpath={folder}" for folder in self.libraries]
        search = [f"-L{folder}" for folder in self.libraries]
        return {"CPATH": self.headers, "LDFLAGS": " ".join([*search, *(f"-Wl,{flag}" for flag in flags)])}

    @property
    def launcher(self) -> list[str]:
        """What to put before the path of a program of the system's, so that it can load libpython."""
        return [self.loader, "--library-path", ":".join(self.libraries)]


def linkage_of(python: str) -> Linkage:
    said = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, check=True)
    loader, libraries, headers = json.loads(said.stdout)
    return Linkage(loader=loader, libraries=tuple(libraries), headers=headers)
