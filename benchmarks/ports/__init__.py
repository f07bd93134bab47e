"""How well `match` and `audit` do on ports that others made: `python -m benchmarks.ports`.

The truth is what each library's own converter fills.
"""
