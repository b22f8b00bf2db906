"""Options, fixtures and scenarios come from the plugin that this file asks for.

An installed qatval registers nothing with pytest: it must change no other project's tests.
"""

pytest_plugins = ["qatval.testing.plugin"]

collect_ignore = ["benchmarks"]
