"""Each of the paper's super-networks by its published preset, for 20 steps, to an exported file.

    python -m bench.presets --cifar FOLDER --photos FOLDER [--names ...]

The batch is small (a step costs what it costs per image); everything else is the preset's. Appends
one row for each network and kind of image to docs/data/presets.jsonl: parameters, gates, groups,
seconds a step and an image, peak memory of the fit, and what the checked export says.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import about
from bench.figures import DATA, Row, append, latest, prose, table, taken

NAMES = (
    "multibranch-m", "multibranch-mi", "enas-e", "enas-ei", "resnet50", "densenet121",
    "densenet121-inflated",
)  # fmt: skip
STEPS = 20
PEAK = "import resource, sys; from pgnas_cli.cli import main\ntry: main(sys.argv[1:])\nfinally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"  # noqa: E501


def subset(folder: Path, into: Path, each: int) -> Path:
    """The first `each` training images and two test images of every class, as links."""
    for source, target, count in (("train", "train", each), ("val", "val", 2), ("test", "val", 2)):
        for place in sorted((folder / source).glob("*")) if (folder / source).exists() else ():
            own = into / target / place.name
            own.mkdir(parents=True, exist_ok=True)
            for image in sorted(place.iterdir())[:count]:
                (own / image.name).symlink_to(image.resolve())
    return into


def pgnas(*arguments: str) -> tuple[dict[str, Any], int]:
    """The JSON of a command, and its peak memory in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments, "--json"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout), int(done.stderr.strip().splitlines()[-1])


def figures(rows: Sequence[Row]) -> str:
    """Sentence and table."""
    rows = latest(rows, "network", "pixels")

    def millions(number: float) -> str:
        return f"{number / 1e6:.2f} M"

    columns = [
        [row["network"], f"{row['pixels']} px", millions(row["params"]), row["gates"],
         row["groups"], f"{row['step']:.2f}", f"{row['image']:.2f}", row["mib"],
         f"{millions(row['exported'])}, {row['seconds']}"]
        for row in rows
    ]  # fmt: skip
    head = ["network", "images", "parameters", "gates", "groups", "s/step", "s/image", "MiB",
            "exported, seconds in all"]  # fmt: skip
    return f"{prose(taken(rows))}\n\n{table(head, columns)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--names", nargs="*", default=NAMES)
    options = parser.parse_args()
    for name in options.names:
        for kind, folder, pixels, batch in (
            ("cifar", options.cifar, 32, 4), ("photos", options.photos, 224, 2)
        ):  # fmt: skip
            with tempfile.TemporaryDirectory() as where:
                here = Path(where)
                classes = sum(1 for _ in (folder / "train").iterdir())
                each = -(-STEPS * batch * 5 // (4 * classes))
                data = str(subset(folder, here / "data", each))
                run = ["--run", str(here / "run")]
                start = time.perf_counter()
                fitted, peak = pgnas(
                    "fit", "--backbone", name, "--preset", "published", "--data", data, "--epochs",
                    "1", "--batch-size", str(batch), "--img-size", str(pixels), "-j", "0", *run,
                )  # fmt: skip
                metrics = json.loads((here / "run" / "metrics.jsonl").read_text().splitlines()[-1])
                pgnas("sample", "-n", "8", *run)
                pgnas("rank", "-j", "0", *run)
                file = here / "best.safetensors"
                written, _ = pgnas("export", str(file), "-j", "0", *run)
                step = batch / metrics["images_per_second"]
                row = {
                    "network": name, "images": kind, "pixels": pixels, "params": fitted["params"],
                    "gates": fitted["gates"], "groups": fitted["groups"], "step": step,
                    "image": step / batch, "mib": round(peak / 1024),
                    "exported": written["params"], "seconds": round(time.perf_counter() - start),
                    **about(),
                }  # fmt: skip
                append(DATA / "presets.jsonl", row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
