"""Cannot be loaded."""

1 / 0  # noqa: B018
