"""Carry PyTorch weights over to TensorFlow and prove that they arrived.

>>> import converter
>>> report = converter.convert("sam_decoder", "sam_vit_b_01ec64.pth")  # doctest: +SKIP
>>> report.output, bool(report.lossless), bool(report.numerical)  # doctest: +SKIP

Importing this package imports next to nothing: its names are looked up when they are used, so that `convert --help`
answers at once.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if not hasattr(os, "preadv"):  # as on Windows, which has none of the file locks either
    raise ImportError("Weightbridge runs on Linux and macOS; on Windows use WSL")

if TYPE_CHECKING:
    from converter import kinds
    from converter.api import Inspection, convert, inspect, plan, register, verify
    from converter.errors import ConversionError, PlanError, ProofError, UsageError
    from converter.exporting import ExportReport, export
    from converter.matching.audit import Audit, Finding, audit
    from converter.matching.match import Match, match
    from converter.pages.proof import save_html
    from converter.pairs.dialects import Dialect
    from converter.pairs.mapping import Drop, Mapping, Row
    from converter.pairs.pair import ConfigJson, Option, Pair, Probe, Variant
    from converter.pairs.registry import names
    from converter.progress import Progress
    from converter.restoring import Restored, restore
    from converter.scaffold import NewPair, new_pair

__all__ = [
    "Audit",
    "ConfigJson",
    "ConversionError",
    "Dialect",
    "Drop",
    "ExportReport",
    "Finding",
    "Inspection",
    "Mapping",
    "Match",
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
    "audit",
    "convert",
    "export",
    "inspect",
    "kinds",
    "match",
    "names",
    "new_pair",
    "plan",
    "register",
    "restore",
    "save_html",
    "verify",
]

_HOMES = {
    "api": "Inspection convert inspect plan register verify",
    "errors": "ConversionError PlanError ProofError UsageError",
    "exporting": "ExportReport export",
    "matching.audit": "Audit Finding audit",
    "matching.match": "Match match",
    "progress": "Progress",
    "restoring": "Restored restore",
    "scaffold": "NewPair new_pair",
    "pages.proof": "save_html",
    "pairs.dialects": "Dialect",
    "pairs.mapping": "Drop Mapping Row",
    "pairs.pair": "ConfigJson Option Pair Probe Variant",
    "pairs.registry": "names",
}


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names.split()), None)
    if home is not None:
        return getattr(import_module(f"converter.{home}"), name)
    if name == "kinds":
        return import_module("converter.kinds")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
