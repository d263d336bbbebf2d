"""A decision as JUnit XML, which CI systems show as tests: a metric is a test case.

FAIL is a `failure`. INCONCLUSIVE is an `error`, JUnit's word for a test that could not tell.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from compressor.gate import wording
from compressor.gate.decide import Decision, Finding, Verdict

KINDS = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(decision: Decision) -> str:
    """The whole document."""
    verdicts = [one.verdict for one in decision.findings]
    counts = {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count(Verdict.FAIL)),
        "errors": str(verdicts.count(Verdict.INCONCLUSIVE)),
        "skipped": "0",
    }
    suites = ElementTree.Element("testsuites", {"name": "llmc gate"} | counts)
    name = _plain(f"{decision.row} against {decision.against}")
    suite = ElementTree.SubElement(suites, "testsuite", {"name": name} | counts)
    for one in decision.findings:
        _add_case(suite, decision, one)
    ElementTree.SubElement(suite, "system-out").text = _plain("\n".join(wording.remarks(decision)))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, decision: Decision, one: Finding) -> None:
    about = {"classname": _plain(f"llmc.gate.{decision.row}"), "name": _plain(one.title), "time": "0"}
    case = ElementTree.SubElement(suite, "testcase", about)
    said = _plain(wording.sentence(one))
    if one.verdict in KINDS:
        ElementTree.SubElement(case, KINDS[one.verdict], {"type": str(one.verdict), "message": said}).text = said
    else:
        ElementTree.SubElement(case, "system-out").text = said


def _plain(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
