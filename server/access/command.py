"""python -m server keys: makes API keys."""

import argparse
from collections.abc import Sequence

from server.access.keys import checked_name, key_digest, new_key


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server keys", description="API keys, see docs/keys.md.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    new = verbs.add_parser("new", help="print a fresh key and its lines for the file of --keys", allow_abbrev=False)
    new.add_argument("name", type=_name, metavar="NAME", help="who gets the key, for example robot-7")
    arguments = parser.parse_args(argv)
    key = new_key(arguments.name)
    print("The key, which is shown this once:", key, "", sep="\n")
    print("Lines for the file of keys:", f"[keys.{arguments.name}]", f'sha256 = "{key_digest(key)}"', sep="\n")
    return 0


def _name(text: str) -> str:
    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
