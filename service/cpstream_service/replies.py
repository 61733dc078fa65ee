"""JSON bodies that end with a newline, and those of them that people read in a terminal with an indent."""

import json
from typing import Any

from starlette.responses import JSONResponse


class ReadableJson(JSONResponse):
    """For metadata: a handful of members."""

    def render(self, content: Any) -> bytes:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class CompactJson(JSONResponse):
    """For samples: an indent would put each number of an embedding on a line of its own."""

    def render(self, content: Any) -> bytes:
        return super().render(content) + b"\n"
