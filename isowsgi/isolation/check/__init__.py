"""`isowsgi check`: what becomes of each mount of a config file, before anything is deployed."""
