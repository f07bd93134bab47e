"""Commands with a search that finds what is made by hand."""

import sys
from dataclasses import replace
from types import SimpleNamespace

from tests.support import matches


def install(found):
    """Have the search find this. Returns what it is called with."""
    called = []

    def match_networks(*given):
        called.append(given)
        return found

    def propose(*given):
        called.append(given)
        links = [replace(link, status="proposed") for link in found.links if link.torch]
        return replace(found, links=links, outputs=[])

    def pair_of(name, *_rest):
        from tests.support.smallest_pair import PAIR

        return replace(PAIR, name=name)

    for name, module in (
        ("engine", {"match_networks": match_networks}),
        ("proposing", {"propose": propose}),
        ("arguments", {"arguments_of": lambda *_: None, "Arguments": lambda: None}),
        ("pairing", {"pair_of": pair_of}),
    ):
        sys.modules[f"converter.matching.{name}"] = SimpleNamespace(**module)  # type: ignore[assignment]
    return called


def main():
    """Run commands, with + between them: `FOUND match ...`, where FOUND is what `tests.support.matches` makes."""
    import cli

    install(getattr(matches, sys.argv[1])())
    commands = " ".join(sys.argv[2:]).split(" + ")
    for command in commands:
        try:
            cli.main(command.split())
        except SystemExit as ended:
            if ended.code or command is commands[-1]:
                raise
