"""Homes of a mount's app, one module per isolation; each gives the same object to the supervisor."""
