"""JSON logs: one object a line, with a reference to the Kubernetes object concerned."""

import json
import logging
import sys
import time


class JsonFormatter(logging.Formatter):
    """Writes time, level, logger, message, and the traceback if there is one."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        reference = getattr(record, "object", None) or getattr(record, "k8s_ref", None)
        if reference:
            line["object"] = reference
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str) -> None:
    """Send all logs to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kopf logs each handled event at INFO.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    # The operator handles signals itself, of which kopf warns at each start.
    logging.getLogger("kopf._core.reactor.running").addFilter(_is_not_about_signals)


def _is_not_about_signals(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("OS signals are ignored")
