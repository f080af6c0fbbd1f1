"""Which home an app can live in: found out by loading it in processes to throw away, and remembered."""
