"""Compare two systems: `python launch/compare.py first=[a1.jsonl,a2.jsonl] second=[b1.jsonl,b2.jsonl]`"""

from promptmeup.config import command
from promptmeup.extraction.compare import CompareConfig, compare
from promptmeup.extraction.dry_run import plan_comparison


def main(config: CompareConfig) -> None:
    """Print F1 of two systems' predictions of one split, and the interval of the difference by a paired bootstrap."""
    compare(config)


if __name__ == "__main__":
    command(CompareConfig, main, plan=plan_comparison)
