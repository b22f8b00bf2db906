"""Detection data: COCO annotation files, cached subsets of them, and the embedded dataset."""
