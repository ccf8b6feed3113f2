from promptmeup.config import command
from promptmeup.corpora.synthetic import SyntheticConfig, generate


def main(config: SyntheticConfig) -> None:
    """Write a made-up news world in the layout of NewsCLIPpings and VisualNews, ready for shards/pack.py.

    python shards/synthesize.py --config configs/pack/synthetic_world.yaml out=DIR
    """
    generate(config)
    count = config.num_train_images + config.num_val_images
    print(f"wrote {count} images with captions, boxes, truth.jsonl and ceiling.json to {config.out}")


if __name__ == "__main__":
    command(SyntheticConfig, main)
