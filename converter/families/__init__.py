"""The networks that can be converted: a file or a folder each, found by its `PAIRS`."""
