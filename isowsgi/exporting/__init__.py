"""Configurations for what stands before several servers, made from the mounts, so that patterns are written once."""
