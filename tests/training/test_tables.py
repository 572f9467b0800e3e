"""Results on the terminal: a row per split, shares in per cent."""

import io

from rich.console import Console

from xcope.tasks import task
from xcope.training import results_table


def shown(splits: dict[str, dict[str, float]], name: str) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(results_table(splits, task(name, {}), "cope[x]"))
    return screen.getvalue()


def test_errors_are_per_cent_and_lengths_stand_beside():
    text = shown({"dense": {"loss": 0.5, "error": 0.123, "sequence_error": 1.0}}, "selective_copy")
    row = next(line for line in text.splitlines() if "dense" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "dense", "41", "0.5000", "12.30", "100.00",
    ]  # fmt: skip
    # brackets are text, not markup
    assert "cope[x]" in text


def test_bits_per_byte_are_shown_for_text():
    metrics = {"loss": 0.5, "error": 0.1, "sequence_error": 1.0, "bits_per_byte": 0.7213}
    text = shown({"held_out": metrics}, "text")
    assert "bits per byte" in text
    assert "0.7213" in text
    assert "sequence error" not in text
