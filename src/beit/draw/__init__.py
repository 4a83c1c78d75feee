"""Drawing: the HTML report, curves, token maps and code galleries."""
