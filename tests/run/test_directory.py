"""The files of a run."""

from pathlib import Path

from pgnas_cli.run import Run


def test_budgets_are_listed_largest_first(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.budgets() == []
    labels = ["", "macs-80", "macs-50", "macs-9.5", "params-75", "params-60.25", "params-7"]
    for label in sorted(labels, key=lambda label: label[::-1]):
        run.candidates(label).touch()
    for stray in ("candidates-old.safetensors", "candidates-params-x.safetensors", "x.safetensors"):
        (tmp_path / stray).touch()
    assert run.budgets() == labels
