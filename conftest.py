"""Options, fixtures and scenarios come from the plugin ``qatval.testing``.

The installed package registers it; this file only says what is collected.
"""

collect_ignore = ["benchmarks"]
