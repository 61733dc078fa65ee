"""What goes to stderr, and how: for people, or as one JSON object a line."""

from typing import Any

from .settings import ServeSettings


def logging_config(settings: ServeSettings) -> dict[str, Any]:
    """For logging.config.dictConfig, in this process and, through uvicorn, in each worker."""
    level = settings.log_level.upper()
    formatters = {
        "text": {"format": "%(asctime)s %(levelname)-7s %(message)s"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s %(process)d",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger", "process": "pid"},
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
        },
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": formatters,
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": settings.log_format, "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        # uvicorn's own lines about starting and stopping only repeat what the service says itself
        "loggers": {"cpstream": {"level": level}, "uvicorn": {"level": level if level == "DEBUG" else "WARNING"}},
    }
