"""Writes gates as JUnit XML for CI systems: a suite for each candidate, a case for each gate."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.compare.result import Comparison


def write_junit(comparison: Comparison, path: Path) -> None:
    """Write the file; its folder must exist."""
    root = ET.Element("testsuites", name="runtime compare")
    for candidate in comparison.candidates:
        checks = candidate.verdict.checks
        failures = sum(check.outcome == "fails" for check in checks)
        attributes = {"name": candidate.model, "tests": str(len(checks)), "failures": str(failures)}
        suite = ET.SubElement(root, "testsuite", attributes)
        for check in checks:
            case = ET.SubElement(suite, "testcase", classname=candidate.model, name=check.option)
            if check.outcome != "passes":
                ET.SubElement(case, "failure" if check.outcome == "fails" else "skipped", message=check.line)
        ET.SubElement(suite, "system-out").text = "\n".join(candidate.verdict.findings)
    ET.indent(root)
    text = '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode")
    # File names need not be UTF-8; ElementTree itself would write invalid XML for those.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
