"""Configures logging when it is loaded, as Django does: all loggers it does not name are disabled."""

import logging
import logging.config

CONFIG = {
    "version": 1,
    "disable_existing_loggers": True,
    "formatters": {"plain": {"format": "%(name)s says %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {"app": {"handlers": ["console"], "level": "INFO"}},
}

logging.config.dictConfig(CONFIG)


def application(environ, start_response):
    if environ["PATH_INFO"] == "/again":
        logging.config.dictConfig(CONFIG)
    logging.getLogger("app").info("info of %s", environ["QUERY_STRING"])
    print("printed:", environ["QUERY_STRING"])
    raise RuntimeError(f"raised: {environ['QUERY_STRING']}")
