"""The pytest side: options, scenarios as parameters, one training per group of them."""
