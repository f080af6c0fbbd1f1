"""Reads the configuration of other servers, and folders of projects, and proposes a config file. It runs in the command only."""
