"""From the weights that a run delivered to a file that a runtime takes."""
