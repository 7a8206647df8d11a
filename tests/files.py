"""Files of the package, changed behind its back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from pgnas_cli.tensors import read_tensors, versioned, write_tensors

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def rewrite(path: Path, kind: str, change: Change) -> None:
    """Apply `change` to the content and the tensors of a file of `kind`."""
    tensors, content = read_tensors(path, kind)
    content = {k: v for k, v in content.items() if k not in versioned("")}
    change(content, tensors)
    write_tensors(path, kind, tensors, content)
