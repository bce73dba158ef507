"""What each number means, in plain sentences for a reader who has never heard of epsilon."""

from collections.abc import Mapping
from typing import Any

from fedmedgen.reporting.record import Record
from fedmedgen.reporting.tables import measured

FINISHED = ("done", "finished", "complete", "completed", "ok")
SAME = 0.01  # differences below this mean nothing

MEANINGS = {
    "epsilon": "Epsilon bounds how much any one patient can change what a site sends, and so what anybody can learn "
    "about her from it. At 0 nothing can be learned; 1 is strong; 10 is weak, but still a proven bound. Delta is the "
    "small chance that the bound fails.",
    "auc": "AUC is the chance that the classifier ranks a random image of a class above a random other one: 0.5 is a "
    "coin, 1 is perfect. With more than two classes it is the mean of each class against the rest.",
    "tstr": "TSTR (train on synthetic, test on real) asks what the synthetic set can teach. TRTR trains the same "
    "network on the real cases of all sites: the most one could hope for.",
    "prior": "The prior alone is what the same network learns from drawn phantoms, that is from no patient at all. A "
    "synthetic set that doesn't beat it has learned nothing useful from the sites.",
    "cheap": "The cheap release is what the same network learns from samples of the statistics alone: one noisy sum "
    "and no training at the sites. A synthetic set that doesn't beat it was not worth its rounds.",
    "best_site": "The best single site is the real data of one site alone: a synthetic set above it is worth sharing "
    "even for that site. It is picked on the test cases, which flatters the site, not the synthetic set.",
    "recall": "Recall is the share of the real cases of a class that are found. For a rare class it shows whether the "
    "synthetic set has kept it.",
    "calibration": "The calibration error is how far the classifier's certainty is from how often it is right: at 0, "
    "of ten cases that it calls with 80 % certainty eight are right. The Brier score counts errors and misplaced "
    "certainty together: smaller is better.",
    "dice": "Dice is the overlap of the predicted and the true mask: 0 is none, 1 is perfect. HD95 is how far apart "
    "the outlines are, in pixels, leaving out the worst 5 %.",
    "fd": "FD and KID measure how far the synthetic images are from real ones as a public image network sees them "
    "(EfficientNet-Lite0, so these are not FID values). Smaller is nearer. The floor is what two halves of the real "
    "patients score against each other with as many images: nothing can be expected to do better.",
    "coverage": "Precision is the share of synthetic images that look like some real one; recall is the share of real "
    "images that look like some synthetic one; density is precision that counts how many real ones each looks like; "
    "coverage is the share of real images that have a synthetic one nearby.",
    "canaries": "Canaries are made-up patients planted in the run, each in or out by a coin's toss. The more coins "
    "anybody guesses from what was released, the larger epsilon must be. A proved epsilon above the claimed one means "
    "that the protection doesn't work; one below it is no proof that it does.",
    "membership": "A membership attack tries to tell patients who took part from others of the same site, by the "
    "generator alone. AUC 0.5 is guessing, 1 is certainty. That these attacks fail doesn't mean that others would.",
    "copies": "If the set repeated patients, its images would lie nearer to training images than to those of patients "
    "held out; by chance about half do.",
    "loss": "The loss is the error of the network on the site's own images while it learns.",
}


def one(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def rare(task: Mapping[str, Any]) -> str:
    """What the synthetic set does for the class with the fewest cases."""
    found = task.get("rare") or {}
    if "class" not in found:
        return ""
    alone, both = (found[key]["mean"] for key in ("real_only", "with_synthetic"))
    return (
        f"Of the rarest class, {found['class']} ({found['count']:,} real cases in training), a classifier finds "
        f"{alone:.0%} with real data alone and {both:.0%} with synthetic cases added."
    )


def verdict(record: Record) -> str:
    """One or two sentences: did it work, and how well."""
    if record.result.get("status") not in FINISHED:
        return f"The run ended early: {record.result.get('reason') or 'no reason was recorded'}."
    parts = [task_verdict(record.metrics.get(task) or {}, task) for task in ("classification", "segmentation")]
    said = " ".join(part for part in parts if part)
    return said or "The run is complete; what the synthetic set is worth was not measured."


def task_verdict(task: Mapping[str, Any], name: str) -> str:
    """What the synthetic set is worth for one task, beside real data and the prior."""
    key, unit = ("auc", "AUC") if name == "classification" else ("dice_mean", "Dice")
    mine, real, prior = ((measured(task, row) or {}).get(key) for row in ("tstr", "trtr", "prior"))
    if not mine:
        return ""
    text = f"{name.capitalize()} learned from the synthetic set alone reaches {unit} {mine['mean']:.3f} on real cases"
    text += f"; learned from the real data of all sites it reaches {real['mean']:.3f}" if real else ""
    if unit == "AUC" and mine["mean"] - 2 * mine["sd"] <= 0.5 + 5 * SAME:
        how = "no" if mine["mean"] <= 0.5 else "hardly"
        return f"{text}. That is {how} better than tossing a coin (0.5): this set does not carry the classes."
    if prior and mine["mean"] <= prior["mean"] + SAME:
        return (
            f"{text}, and from phantoms alone {prior['mean']:.3f}: the sites' data added nothing that this test sees."
        )
    return f"{text}, and from phantoms alone {prior['mean']:.3f}." if prior else f"{text}."


SIDES = ("synthetic", "real")


def mask_shape(name: str, part: Mapping[str, Any]) -> str:
    """How the masks of a class look, beside the real ones."""
    usual, whole = part["as_usual"], part["parts"]
    mine, real = (f"{side['mean']:.1%} of the image (sd {side['sd']:.1%})" for side in map(part["areas"].get, SIDES))
    return (
        f"{name.capitalize()}: {usual['synthetic']:.0%} of the synthetic masks hang together in {whole}"
        f" {'part' if whole == 1 else 'parts'}, as {usual['real']:.0%} of the real ones do. Their area is {mine}, that"
        f" of real ones {real}; the two distributions of areas differ by {part['distance']:.2f} at most (0: alike, 1:"
        f" nothing in common).{_variety(part)}"
    )


def _variety(part: Mapping[str, Any]) -> str:
    """How many of the synthetic masks are different ones; older runs don't know."""
    if "distinct" not in part:
        return ""
    distinct, total, most = (part[name]["synthetic"] for name in ("distinct", "n", "commonest"))
    return f" {distinct:,} of the {total:,} synthetic masks are different; the commonest is {most:.1%} of them."
