"""A packed corpus as one HTML page: python shards/gallery.py DIR [--out gallery.html]"""

import argparse
import sys
from pathlib import Path

from promptmeup.errors import UserError
from promptmeup.gallery.page import write_gallery
from promptmeup.packing.verify import split_folders


def main() -> int:
    """Draw photos with boxes, captions with entities, soft labels and statistics into one HTML file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="packed corpus, or one split of it"
    )
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), metavar="FILE")
    parser.add_argument("--samples", type=int, default=48, metavar="N", help="shown of each split")
    parser.add_argument("--seed", type=int, default=0, help="another choice of samples")
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY", help="show these samples instead")
    arguments = parser.parse_args()
    try:
        folders = [split for folder in arguments.folders for split in split_folders(folder)]
        write_gallery(
            folders, arguments.out, samples=arguments.samples, seed=arguments.seed, keys=arguments.keys
        )
    except UserError as error:
        print(f"gallery.py: {error}", file=sys.stderr)
        return error.exit_code
    print(f"wrote {arguments.out}: open it in any browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
