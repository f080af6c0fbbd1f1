"""What runs in gunicorn's master, which never has an interpreter beside its own."""
