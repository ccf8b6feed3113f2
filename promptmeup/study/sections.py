"""What a report says, in its order: sections of text, tables and pictures, for the page and for Markdown."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from promptmeup.study import tables
from promptmeup.study.findings import Findings
from promptmeup.study.losses import Curve, draw_losses
from promptmeup.study.plots import draw_curves, draw_effects, draw_scores
from promptmeup.study.results import StageFacts
from promptmeup.study.scoring import PARTS
from promptmeup.study.tables import Table
from promptmeup.tracking.console import duration


@dataclass(frozen=True)
class Plot:
    """A picture."""

    file: str
    """its name beside the report"""
    alt: str
    """what it shows, in words"""
    svg: str


@dataclass(frozen=True)
class Section:
    """A part of the report: title, text, code as it is, pictures, tables, and small print."""

    id: str
    title: str
    text: Sequence[str] = ()
    code: str = ""
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


def sections(found: Findings, losses: dict[str, dict[str, Curve]]) -> list[Section]:
    """Return all sections that have something to say."""
    made = [_missing(found), _claims(found), _same(found), _power(found)]
    made += [_measure(found, measure) for measure in found.study.measures]
    made += [_parts(found, measure) for measure in found.study.measures]
    made += [_ceilings(found), _losses(found, losses), _recompute(found)]
    return [section for section in made if section is not None]


def _missing(found: Findings) -> Section | None:
    if not found.results.missing:
        return None
    text = (
        "Numbers below are of what is finished. Arms are compared over the seeds that both have, so an arm with few "
        "seeds has a wide interval, or none.",
    )
    return Section("missing", "What is missing", text, tables=[tables.missing(found)])


def _claims(found: Findings) -> Section | None:
    if not found.judged:
        return None
    notes = (
        "An effect is the mean over seeds of first − second on the same seed, in points, with the 95 % interval of "
        "Student's t. “Higher” is supported if all of the interval is above 0, and not supported if all of it is "
        f"below the claim's margin ({_margins(found)}): an effect of that size is excluded. “Same” is supported if "
        "all of it is within the margin, and not supported if all of it is outside. "
        "Everything else is undecided: the data allow both.",
        "p: of no difference (paired t-test, two-sided) for “higher”, of a difference as large as the margin (two "
        "one-sided tests, doubled) for “same”; none where the difference is the same for all seeds, which says "
        "nothing of chance. Holm: adjusted for all claims of this table that have a p. Verdicts are by the "
        "intervals, which are not adjusted.",
    )
    weak = [one.claim.claim for one in found.judged if one.verdict == "supported" and (one.holm or 0) > 0.05]
    text = (
        [f"Supported, but no longer once adjusted for the number of claims: {'; '.join(weak)}."]
        if weak
        else []
    )
    if other := [one.claim.claim for one in found.judged if one.other_tests]:
        text.append(
            "Between arms that were tested on other examples or other photos, so that the effect holds the difference "
            f"between the test sets too: {'; '.join(other)}."
        )
    return Section("verdicts", "Verdicts", text, tables=[tables.claims(found)], notes=notes)


def _same(found: Findings) -> Section | None:
    if not (same := found.study.same_for_all_seeds()):
        return None
    text = (f"The same for all seeds: {', '.join(same)}; the intervals do not cover chance in these.",)
    return Section("same", "What seeds do not vary", text)


def _margins(found: Findings) -> str:
    return (
        ", ".join(f"{margin:g}" for margin in sorted({one.claim.margin for one in found.judged})) + " points"
    )


def _power(found: Findings) -> Section | None:
    if not found.power:
        return None
    notes = (
        "The smallest true difference to the baseline, in points, that a paired t-test (two-sided, 5 %) finds with a "
        "probability of 80 %. The sd is the root mean square over arms. Where an effect is smaller than this, "
        "“undecided” is what to expect.",
    )
    return Section("power", "What this study can resolve", tables=[tables.power(found)], notes=notes)


def _measure(found: Findings, measure: str) -> Section:
    study = found.study
    drawn = (
        ("effects", "effects of the arms with intervals", draw_effects(found, measure)),
        ("curves", f"scores over {study.x_label or 'x'}", draw_curves(found, measure)),
        ("scores", "scores of all arms and ceilings", draw_scores(found, measure)),
    )
    plots = [Plot(f"{measure}-{name}.svg", f"{measure}: {alt}", svg) for name, alt, svg in drawn if svg]
    text = [
        f"Effects are against “{study.baseline}”, paired by seed; coloured where the interval excludes 0."
    ]
    if (study.baseline, measure) not in found.scores:
        text = ["NO RESULTS OF THE BASELINE YET, so there are no effects."]
    if other := [arm for arm, m in found.other_tests if m == measure]:
        text.append(
            f"Tested on other examples than the baseline of the same seed: {', '.join(other)}. Their effects hold "
            "the difference between the test sets too."
        )
    if other := [arm for arm, m in found.other_photos if m == measure]:
        text.append(
            f"Tested on photos of another folder of {study.measures[measure].tests} than the baseline's of the same "
            f"seed: {', '.join(other)}. Where these are other photos, their effects hold the difference between the "
            "test sets too."
        )
    table = tables.arms(found, measure)
    return Section(f"measure-{measure}", f"Arms: {measure}", text, plots=plots, tables=[table])


def _parts(found: Findings, measure: str) -> Section | None:
    table = tables.parts(found, measure)
    if not table.rows:
        return None
    what = PARTS[found.study.measures[measure].kind]
    text = (
        f"Effects on {what}, in points against “{found.study.baseline}”, with 95 % intervals; coloured where they "
        f"exclude 0. These are {len(table.rows)} × {len(table.head) - 1} comparisons, not adjusted for their number: "
        "where nothing differs, one in twenty is coloured by chance.",
    )
    return Section(f"parts-{measure}", f"{measure[0].upper()}{measure[1:]}: {what}", text, tables=[table])


def _ceilings(found: Findings) -> Section | None:
    table = tables.ceilings(found)
    if not table.rows:
        return None
    notes = (
        "The best score that is possible by what is seen, in %: of an oracle that knows the words alone and how often "
        "each reading occurs in this very test set, of one that is also told how many objects of each kind the image "
        "shows, and of one that is told who is shown. What an oracle reaches, no model that sees as little can exceed. "
        "Mean ± sd over the finished cells.",
    )
    return Section("ceilings", "Ceilings", tables=[table], notes=notes)


def _losses(found: Findings, losses: dict[str, dict[str, Curve]]) -> Section | None:
    drawn = draw_losses(losses)
    if drawn is None:
        return None
    text = ["Losses on the training data, mean over seeds, neighbouring steps averaged."]
    if len(losses) < len(found.study.arms):
        text.append(f"Drawn are {len(losses)} of {len(found.study.arms)} arms.")
    plots = [Plot("losses.svg", "losses of pre-training by step", drawn)]
    return Section("losses", "Pre-training", text, plots=plots)


def _recompute(found: Findings) -> Section:
    text = (
        *_made(found.results.stages.values()),
        "This report is computed from its folder alone: study.json, and of each finished cell the predictions, the "
        "ceilings and the losses (cells/*/seed-*). scores.json has all numbers. To compute them again, run this on a "
        "copy of the folder; the cells themselves are made anew by the command at the top.",
    )
    return Section("recompute", "How to recompute", text, "python -m promptmeup.study.report FOLDER")


def _made(stages: Collection[StageFacts]) -> list[str]:
    """Return how the cells were made: the time, and the code that everything was made with, or that it was not one."""
    if not stages:
        return []
    took = duration(sum(stage.seconds for stage in stages))
    time = f"The {len(stages)} stages of the finished cells took {took} of one process."
    versions = Counter(stage.code or "an unrecorded version" for stage in stages)
    if len(versions) == 1:
        return [f"{time} Code: {next(iter(versions))}."]
    listed = ", ".join(f"{version} ({count})" for version, count in versions.most_common())
    return [
        f"{time} NOT ALL WERE MADE WITH THE SAME CODE: {listed}. Where a change between them matters, delete the "
        "store and run the study again."
    ]
