from promptmeup.config import command
from promptmeup.corpora.synthetic import SyntheticConfig, generate


def main(config: SyntheticConfig) -> None:
    """Write a made-up news world in the layout of NewsCLIPpings and VisualNews, ready for shards/pack.py.

    Beside it, under extraction/, two corpora for fine-tuning in which only the image tells what the words leave open.

    python shards/synthesize.py --config configs/pack/synthetic_world.yaml out=DIR
    """
    generate(config)
    count = config.num_train_images + config.num_val_images
    print(f"wrote {count} images with captions, boxes, truth.jsonl and ceiling.json to {config.out}")
    sizes = {split: size for split, size in config.extraction.by_split().items() if size}
    if sizes:
        told = ", ".join(f"{size} {split}" for split, size in sizes.items())
        print(
            f"wrote sentences with images for entities and relations ({told} each) to {config.out}/extraction"
        )


if __name__ == "__main__":
    command(SyntheticConfig, main)
