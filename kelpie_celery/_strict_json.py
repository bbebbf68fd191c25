"""Reads JSON that people wrote, and says where it is broken without quoting it.

Limits: the text is held in memory whole, so its size is bounded by the caller.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from kelpie_celery.errors import DefinitionError


class _TwiceError(Exception):
    """A name occurs twice in one object; JSON's readers disagree on which one counts."""


def strict_json(text: str | bytes | bytearray, max_bytes: int) -> Any:
    """Parse JSON in which each name occurs once in its object.

    Raises:
        DefinitionError: With the place of the fault; our error is not chained to that of the parser, which
            holds the whole text.
    """
    if len(text) > max_bytes:
        raise DefinitionError([("definition", f"{len(text)} bytes", f"must have at most {max_bytes} bytes")])
    try:
        return json.loads(text, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        fault = (
            "definition",
            f"line {error.lineno}, column {error.colno}",
            f"is not valid JSON: {error.msg}",
        )
    except UnicodeDecodeError as error:
        fault = ("definition", f"byte {error.start}", "must be JSON in UTF-8")
    except RecursionError:
        fault = ("definition", "deeply nested JSON", "must not be nested that deeply")
    except _TwiceError as error:
        fault = (str(error), "two of them", "must be given once")
    except ValueError:  # Python refuses to convert numbers of more than 4,300 digits
        fault = ("definition", "JSON", "must not hold a number of thousands of digits")
    raise DefinitionError([fault])


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _TwiceError(ascii(name[:60])[1:-1])
    return found
