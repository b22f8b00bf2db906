"""Reports: a run's and a comparison's, as text for the terminal, Markdown and HTML.

Each is a rendering of a document that is on disk as JSON; none computes a result of its own.
"""
