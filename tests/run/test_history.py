"""The command lines that wrote into a run."""

from pathlib import Path

from pgnas_cli.run import Run, commands_of, remember


def test_commands_are_kept_in_order_and_a_repeated_one_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert commands_of(run) == []
    for line in ("pgnas fit", "pgnas fit", "pgnas rank", "pgnas fit"):
        remember(run, line)
    assert [command.line for command in commands_of(run)] == [
        "pgnas fit",
        "pgnas rank",
        "pgnas fit",
    ]


def test_lines_of_others_are_left_out_and_stay_where_they_are(tmp_path: Path) -> None:
    run = Run(tmp_path)
    remember(run, "pgnas fit")
    strange = '{"line": 1}\n' + "[" * 100_000 + "\nnot json, not ended: \udcff"
    with run.commands.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(strange)
    assert [command.line for command in commands_of(run)] == ["pgnas fit"]
    remember(run, "pgnas rank")
    assert [command.line for command in commands_of(run)] == ["pgnas fit", "pgnas rank"]
    assert "not json, not ended" in run.commands.read_text(encoding="utf-8")
