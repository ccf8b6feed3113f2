"""Run an experiment of many cells: `python launch/study.py --config configs/study/ablation.yaml`"""

from promptmeup.config import command
from promptmeup.study.settings import StudyConfig
from promptmeup.study.study import plan_study, study


def main(config: StudyConfig) -> None:
    """Run every arm of a study at every seed, and write what they show into report.html and report.md.

    Arms share the stages that they have in common, with other studies too. The same command goes on after a signal, a
    crash or kill -9; started several times (slurm/study.sh), it shares the work. report_only=true runs nothing.
    """
    study(config)


if __name__ == "__main__":
    command(StudyConfig, main, plan=plan_study)
