"""Configuration files of other servers, after the shapes that people have, and apps for them: see tests/test_importing.py."""
