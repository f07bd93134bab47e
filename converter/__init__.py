"""Carry PyTorch weights over to TensorFlow and prove that they arrived.

>>> import converter
>>> report = converter.convert("sam_decoder", "sam_vit_b_01ec64.pth")  # doctest: +SKIP
>>> report.output, bool(report.lossless), bool(report.numerical)  # doctest: +SKIP

Importing this package imports neither torch nor TensorFlow.
"""

from converter import kinds
from converter.api import Inspection, convert, inspect, plan, register, verify
from converter.errors import ConversionError, PlanError, ProofError, UsageError
from converter.exporting import ExportReport, export
from converter.progress import Progress
from converter.restoring import Restored, restore
from converter.scaffold import NewPair, new_pair
from converter.tables.dialects import Dialect
from converter.tables.mapping import Drop, Mapping, Row
from converter.tables.pair import ConfigJson, Option, Pair, Probe, Variant
from converter.tables.registry import names

__all__ = [
    "ConfigJson",
    "ConversionError",
    "Dialect",
    "Drop",
    "ExportReport",
    "Inspection",
    "Mapping",
    "NewPair",
    "Option",
    "Pair",
    "PlanError",
    "Probe",
    "Progress",
    "ProofError",
    "Restored",
    "Row",
    "UsageError",
    "Variant",
    "convert",
    "export",
    "inspect",
    "kinds",
    "names",
    "new_pair",
    "plan",
    "register",
    "restore",
    "verify",
]
