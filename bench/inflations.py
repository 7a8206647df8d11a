"""Networks of ten families: inflated, fitted by the very line that `inflate` prints, exported.

    python -m bench.inflations [NAMES ...]

The data are 24 photos of three colours; an epoch, 32 pixels. Appends a row for each network to
docs/data/inflations.jsonl.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bench import about
from bench.figures import DATA, Row, append, latest, prose, table, taken

NAMES = (
    "timm/resnet18", "resnet50", "densenet121", "timm/mobilenetv2_035", "timm/efficientnet_b0",
    "timm/tf_efficientnet_lite0", "timm/mobilenetv3_small_050", "timm/regnetx_002", "timm/vgg11",
    "timm/ghostnet_050", "timm/dla46_c", "timm/mnasnet_small", "timm/convnext_atto",
)  # fmt: skip
QUICK = ["--epochs", "1", "--batch-size", "8", "--img-size", "32", "-j", "0", "--run", "run"]


def photos(folder: Path) -> None:
    """Three classes of eight training and two test images each."""
    for name, colour in {
        "blue": (30, 40, 200),
        "green": (40, 190, 30),
        "red": (210, 30, 40),
    }.items():
        for part, count in (("train", 8), ("val", 2)):
            place = folder / part / name
            place.mkdir(parents=True)
            for index in range(count):
                shade = tuple(min(255, c + 7 * index) for c in colour)
                Image.new("RGB", (48, 48), shade).save(place / f"{index}.jpg")


def pgnas(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command; its stderr ends the study where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pgnas_cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(arguments)}\n{done.stderr}")
    return done


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table."""
    rows = latest(rows, "network")
    columns = [
        [row["network"], f"`{row['line']}`", row["gates"], f"{row['params'] / 1e6:.2f} M",
         f"{row['exported'] / 1e6:.2f} M", row["seconds"]]
        for row in rows
    ]  # fmt: skip
    head = ["network", "printed line", "gates", "parameters", "exported", "seconds"]
    told = f"The printed line led to an exported winner for {len(rows)} networks."
    return f"{prose(taken(rows), told)}\n\n{table(head, columns)}"


def main() -> None:
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as where:
            os.chdir(where)
            photos(Path("DIR"))  # the name in the printed line
            began = time.perf_counter()
            told = pgnas("inflate", name, "-o", "wide.safetensors", "--img-size", "32").stderr
            line = told.splitlines()[-1].removeprefix("next: ")
            fitted = json.loads(pgnas(*shlex.split(line)[1:], *QUICK, "--json").stdout)
            pgnas("sample", "-n", "4", "--run", "run")
            best = pgnas("export", "best.safetensors", "-j", "0", "--json", "--run", "run")
            size = json.loads(best.stdout.splitlines()[-1])["params"]
            row = {
                "network": name, "line": line, "gates": fitted["gates"], "params": fitted["params"],
                "exported": size, "seconds": round(time.perf_counter() - began), **about(),
            }  # fmt: skip
            append(DATA / "inflations.jsonl", row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
