"""What is shipped: the exported file, run by a runtime, scored and shown. Nothing here needs torch.

`qatval.deploy.export` makes the file, with torch.
"""
