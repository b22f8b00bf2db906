"""The life of a run: settle what to run, train, score, deliver, leave a summary."""
