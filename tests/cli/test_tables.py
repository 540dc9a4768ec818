from cera.cli.tables import table


def test_numbers_are_formatted_and_strings_in_verbatim_columns_kept():
    rows = [["CeRA", 3686400, 2.5, "3e-4"], ["LoRA", None, None, "-"]]
    printed = table(rows, ["adapter", "parameters", "PPL", "rate"], ".3f", intfmt=",", verbatim=[3])
    assert [line.split() for line in printed.splitlines()[2:]] == [
        ["CeRA", "3,686,400", "2.500", "3e-4"],
        ["LoRA", "-"],
    ]
    assert [line.rstrip()[-4:] for line in printed.splitlines()] == ["rate", "----", "3e-4", "   -"]


def test_an_empty_markdown_table():
    assert table([], ["run", "PPL"], style="markdown", verbatim=[1]).startswith("| run")
