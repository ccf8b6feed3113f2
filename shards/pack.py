"""python shards/pack.py --config configs/pack/newsclippings.yaml corpus.root=FOLDER out=FOLDER"""

from promptmeup.config import command
from promptmeup.packing.dry_run import plan_packing
from promptmeup.packing.pack import pack
from promptmeup.packing.settings import PackConfig


def main(config: PackConfig) -> None:
    """Pack a raw corpus into WebDataset shards with boxes, entities and an index.

    A split that is finished is skipped, so the same command can be run again at any time. The format is
    described in shards/README.md, the settings in promptmeup/packing/settings.py.
    """
    pack(config)


if __name__ == "__main__":
    command(PackConfig, main, plan=plan_packing)
