"""Former option names."""

import pytest

from console.renamed import current_arguments
from runtime.__main__ import RENAMED


@pytest.mark.parametrize(
    ("former", "current"),
    [
        ("compare --source scans --documents 3", "compare --documents scans --count 3"),
        ("compare --source=scans --documents=3", "compare --documents=scans --count=3"),
        ("compare --documents scans --count 3", "compare --documents scans --count 3"),
        ("compare --documents 2024/scans", "compare --documents 2024/scans"),
        ("generate --prompt --source-of-income", "generate --prompt --source-of-income"),
    ],
)
def test_former_names_become_todays(former, current, capsys):
    assert current_arguments(former.split(), RENAMED) == current.split()
    renamed = former.split()[1].partition("=")[0] == "--source"
    assert capsys.readouterr().err.splitlines() == (
        ["--source is now --documents", "--documents is now --count"] if renamed else []
    )
