"""What rows of a comparison are called."""

from mmdistill.reporting.comparison import Repetitions, Score
from mmdistill.reporting.side_by_side import titles


def row(name: str, **settings: str) -> Repetitions:
    return Repetitions(
        name, "digits", "dm", "ipc", 1, 10, Score((0.5,)), {}, (1.0,), "convnet", "accuracy", 1, settings=settings
    )


def test_what_most_rows_have_is_said_of_the_others_alone() -> None:
    rows = [row("a", alpha="1", steps="5"), row("b", alpha="2", steps="5"), row("c", alpha="3", steps="5")]
    assert titles([*rows, row("d", alpha="1", steps="9")]) == [
        "dm (alpha 1)",
        "dm (alpha 2)",
        "dm (alpha 3)",
        "dm (alpha 1, steps 9)",
    ]
    assert titles(rows[:2]) == ["dm (alpha 1)", "dm (alpha 2)"]


def test_what_another_row_lacks_is_said() -> None:
    rows = [row("a", alpha="1", beta="3"), row("b", alpha="2", beta="3"), row("c", alpha="4", beta="3")]
    found = titles([*rows, row("d", alpha="1")])
    assert found == ["dm (alpha 1, beta 3)", "dm (alpha 2, beta 3)", "dm (alpha 4, beta 3)", "dm (alpha 1)"]
