"""Verdicts over finished runs, read from their summaries; no torch, no pytest."""
