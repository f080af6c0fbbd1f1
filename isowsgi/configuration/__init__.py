"""The config file: a TOML file becomes a frozen `Config`, or a `ConfigError` that names every fault of it at once.

Four steps: tomllib reads the text; cattrs builds the tables of `read`, one of `checks` per kind of value, each fault with its place; then
`[defaults]`, the tables of a mount's group and its own are laid over each other; and what a mount's settings mean together is checked.
A value is checked where it is written and before anything is merged: that is why a wrong default is reported once, not once per mount.

Everything imported here is pure Python outside the standard library, since the main interpreter reads the file (ARCHITECTURE.md).
"""

from isowsgi.configuration.faults import ConfigError
from isowsgi.configuration.read import load
from isowsgi.configuration.values import HOOKS, App, Config, Control, Limits, Mount, Status

__all__ = ["HOOKS", "App", "Config", "ConfigError", "Control", "Limits", "Mount", "Status", "load"]
