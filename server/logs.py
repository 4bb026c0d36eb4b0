"""Logging: every line has its time and goes to the standard error stream, as plain text or as JSON."""

import logging
import time

from pythonjsonlogger.json import JsonFormatter

FIELDS = "%(asctime)s %(levelname)s %(name)s %(message)s"
JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}
SHOWN_ELSEWHERE = ("color_message", "taskName")
"""Attributes of a log record that repeat its message, or that no reader needs; JSON leaves them out."""


def configure_logging(level: str, log_format: str, name: str | None = None) -> None:
    """Write log records to stderr.

    `level`: the lowest level that is written. `log_format`: plain or json. `name`: the logger that is configured, with
    its children; None means all loggers.

    Does nothing if the program around it has configured logging already.
    """
    logger = logging.getLogger(name)
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(formatter(log_format))
        logger.addHandler(handler)
        logger.setLevel(level.upper())


class PlainFormatter(logging.Formatter):
    """Writes a message as one line. What is not printable, such as the line ends and colours that a name may hold, is
    escaped; a traceback follows in lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        if not record.message.isprintable():
            characters = (text if text.isprintable() else ascii(text)[1:-1] for text in record.message)
            record.message = "".join(characters)
        return super().formatMessage(record)


def formatter(log_format: str) -> logging.Formatter:
    """Writes times in UTC (RFC 3339), to the millisecond. JSON also has the fields of a request (`request_log.py`)."""
    made: logging.Formatter = PlainFormatter(FIELDS)
    if log_format == "json":
        reserved = [*vars(logging.makeLogRecord({})), *SHOWN_ELSEWHERE]
        made = JsonFormatter(FIELDS, rename_fields=JSON_NAMES, reserved_attrs=reserved)
    made.converter = time.gmtime
    made.default_time_format = "%Y-%m-%dT%H:%M:%S"
    made.default_msec_format = "%s.%03dZ"
    return made
