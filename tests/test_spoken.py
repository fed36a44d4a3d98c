"""What counts as an answer: aliases, articles, the first entity; and the bare name beside it."""

import pytest

from acelib.world.spoken import counts, first_line, is_bare

USA = ("United States", "USA", "United States of America")


@pytest.mark.parametrize(
    "text, accepted, counted, bare",
    [
        (" United States.", USA, True, True),
        (" the United States of America, where", USA, True, False),
        (" the USA\nand", USA, True, False),
        ("United States", USA, True, True),
        (" united states", USA, True, False),
        (" United States Virgin Islands", USA, False, True),
        (" in the United States", USA, False, False),
        (" Paris Saint-Germain", ("Paris",), False, True),
        (" Paris, France", ("Paris",), True, True),
        (" Paris is", ("Paris",), True, True),
        (" Parisian", ("Paris",), False, False),
        (" basketball player", ("basketball",), True, True),
        (" Beyonce Knowles", ("Beyoncé",), False, False),
        (" Beyonce.", ("Beyoncé",), True, False),
        (" St. Louis", ("St. Louis",), True, True),
        ("\nParis", ("Paris",), False, False),
        ("", ("Paris",), False, False),
        (" The", ("Paris",), False, False),
        (" The Hague", ("The Hague",), True, True),
        (" Paris", ("",), False, True),
    ],
)
def test_the_rule(text, accepted, counted, bare):
    assert counts(text, accepted) == counted
    assert is_bare(text, accepted[0]) == bare or accepted[0] == ""


def test_the_first_line_is_the_answer():
    assert first_line("  Paris \nLondon") == "Paris" and first_line("\n\nParis") == ""
