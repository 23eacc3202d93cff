"""Every link of the documents leads to a file that is there, and every link to code to the line that it names."""

from tools.doc_links import DOCS, corrected


def test_links_of_the_documents():
    problems = []
    for doc in DOCS:
        if corrected(doc, problems) != doc.read_text(encoding="utf-8"):
            problems.append(f"{doc.name}: line numbers moved; run python tools/doc_links.py")
    assert problems == []
