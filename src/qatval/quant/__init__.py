"""Quantization in plain terms: layers, codes, averages and corrections, as torch modules.

Nothing here knows how a model is trained or where its data come from.
"""
