"""Which isolation an app can live in: found by trials in throw-away processes, remembered, and explained by `isowsgi check`."""
