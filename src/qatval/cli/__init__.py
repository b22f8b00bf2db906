"""The command line: one module per command, each with an ``add_parser``."""
