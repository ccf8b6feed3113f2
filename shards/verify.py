"""Check a packed corpus: python shards/verify.py DIR [--full] [--json]"""

import argparse
import json
import sys
from pathlib import Path

from promptmeup.errors import UserError
from promptmeup.packing.processes import available_cores
from promptmeup.packing.verify import split_folders, verify
from promptmeup.progress import Progress


def main() -> int:
    """Check hashes, members, records, boxes, photos, index and labels of every split, and leaks between them.

    Exit code 0: everything is sound; 1: something is wrong; 2: the command itself is.
    """
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="packed corpus, or one split of it"
    )
    parser.add_argument("--full", action="store_true", help="decode every photo, not one in twenty")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--processes", type=int, default=available_cores(), metavar="N")
    arguments = parser.parse_args()
    try:
        folders = [split for folder in arguments.folders for split in split_folders(folder)]
    except UserError as error:
        parser.error(str(error))
    with Progress("verify", unit="shards") as bar:
        report = verify(folders, full=arguments.full, processes=arguments.processes, count=bar.advance)
    print(json.dumps(report.as_json(), indent=1, ensure_ascii=False) if arguments.json else report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
