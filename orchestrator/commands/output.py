"""What commands print with --json."""

import json
import sys


def print_json(shown: object) -> None:
    """Print as JSON, for people and programs alike: indented, in the letters that it is in."""
    sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False) + "\n")
