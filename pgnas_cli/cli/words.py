"""Messages of the engine in the words of the command line."""

import re


def flagged(text: str) -> str:
    """A message of the engine, which names options as `max_params`, in the words of this edge."""
    return re.sub(r"`(\w+)`", lambda m: "--" + m[1].replace("_", "-"), text)
