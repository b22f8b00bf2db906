"""What every other package speaks in: choices, presets, records, files, errors; no torch."""
