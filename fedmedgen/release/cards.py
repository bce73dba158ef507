"""README.md with Hugging Face's front matter, and datasheet.md: the questions of Gebru et al., answered from the run.

**Source** Gebru et al. 2021, Datasheets for Datasets; Mitchell et al. 2019, Model Cards for Model Reporting.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from fedmedgen.reporting.tables import number
from fedmedgen.reporting.words import one

Content = Mapping[str, Any]
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
UNKNOWN = "Not known to the program that wrote this: to be answered by the project."
LIMITS = (
    "For research on data sharing, augmentation and method development. Not a medical device: no image is evidence "
    "about any patient, and nothing here may guide care. The set knows only the anatomy, classes, views and pixel size "
    "of its training, copies the biases of the sites' data, draws rare findings worst, and may draw impossible "
    "anatomy. A network trained on it must be tested on real cases of the place where it is to be used."
)

README = """---
{front}---
# {title}

{cases} synthetic radiographs{masks} of {height} x {width} pixels, of the classes {classes}, drawn by a generator that
{sites} sites trained together on their own radiographs under {unit}-level differential privacy. No image of a site's
patient is in it.
{public_people}

## The promise

Everything a site sent in the run is ({epsilon}, {delta})-differentially private for each {unit}: {risk}. For {one_unit}
whose images lie at several sites epsilons add, to {epsilon_sum} at most. `certificate.html` says it for people,
`certificate.json` for programs, and `certificate.sig` signs it. Check all three, and every file, by

```
fedmedgen release --verify .
```

and compare the key's fingerprint with the one that the project publishes: `{fingerprint}`

## What is in this folder

- `set/`: images/*.png{mask_files}, labels.csv (filename, label, label_name, split) and datasheet.json
{generator}- `datasheet.md`: how the set came to be, and what it is and isn't for

## What it is worth

{worth}

## Limits

{limits}
"""

DATASHEET = """# Datasheet: {title}

The questions are those of *Datasheets for Datasets* (Gebru et al. 2021); the answers are taken from the run `{run}`.

## Motivation

**For what purpose was the set created?** To share what radiographs of several sites teach, without sharing them.

**Who created it, and who funded it?** {unknown}

## Composition

**What does an instance stand for?** One synthetic radiograph{masks}. None stands for a person.

**How many instances are there?** {cases}, in {n_classes} classes ({classes}), {height} x {width} pixels, 8-bit grey.

**Is it a sample of a larger set?** It is drawn from a generator, which can draw more; no case was chosen by hand.

**Is there a label for each instance?** Yes: the class that the generator was asked to draw{mask_words}. No person has
read the images: a label says what was asked for, not what a radiologist would find.

**Are there recommended splits?** All are for training (`split` is train). Test on real cases only.

**Are there errors, noise or redundancies?** Yes. The generator was trained with noise on purpose; of real images the
set covers {coverage}, and see the certificate for how far networks trained on it get.

**Does it hold confidential data, or data that identifies people?** No image of a site's patient. What the set
may tell about {one_unit} whose data trained it is bounded: ({epsilon}, {delta})-differential privacy for each {unit} of
each site; {risk}.
{public_people}

## Collection

**How was the data acquired?** {sites} sites ({site_names}) with declared patients: {declared}. {public} Their images
never left them; noisy updates did: {mechanism}.

**Who was involved, and did the people consent; was there an ethical review?** {unknown}

**Over what time was it collected?** {unknown} The release was made on {at}.

## Preprocessing, cleaning, labelling

**Was the data preprocessed?** At each site, to {height} x {width} grey pixels; unreadable files were set aside. The
synthetic images are as drawn.

**Is the software available?** fedmedgen {version}, commit {commit}.

## Uses

**What has it been used for, and how well does it do?**

{worth}

**What should it not be used for?** {limits}

## Distribution

**How is it distributed, under which licence?** As this folder, signed by the project's key `{fingerprint}`. {unknown}

## Maintenance

**Who maintains it; will it be updated; can older versions be had?** {unknown} A release can't be changed without its
signature breaking: a new one is a new folder, and every new run on the same patients adds to what the sites have spent.
"""


def readme(content: Content, *, with_generator: bool) -> str:
    """The model and data card, as Hugging Face reads it."""
    known, of_set = _facts(content), content["set"]
    tasks = ["image-classification"] * (len(of_set["classes"]) > 1) + ["image-segmentation"] * bool(of_set["masks"])
    front: dict[str, Any] = {
        "license": "other",
        "pretty_name": known["title"],
        "tags": ["radiography", "medical", "synthetic-data", "federated-learning", "differential-privacy"],
        "task_categories": tasks or ["unconditional-image-generation"],
        "size_categories": [next((name for most, name in SIZES if known["cases"] < most), "n>1M")],
    }
    if with_generator:
        front |= {"library_name": "diffusers", "pipeline_tag": "unconditional-image-generation"}
    generator = "- `generator/`: the generator, for `diffusers`, with its own README.md\n" if with_generator else ""
    return README.format(front=yaml.safe_dump(front, sort_keys=False), generator=generator, **known)


def datasheet(content: Content) -> str:
    """How the set came to be, and what it is for."""
    return DATASHEET.format(**_facts(content))


def _facts(content: Content) -> dict[str, Any]:
    promise, of_set, sites = content["claim"], content["set"], content["sites"]
    masks = ", ".join(of_set["mask_classes"][1:])
    rows = content["numbers"]["worth"]
    public = content["public_data"]
    return {
        "title": f"Synthetic radiographs of the study {content['study']}",
        "run": content["run"],
        "at": content["at"][:10],
        "cases": of_set["cases"],
        "classes": ", ".join(of_set["classes"]) or "none",
        "n_classes": len(of_set["classes"]),
        "masks": f" with masks ({masks})" if of_set["masks"] else "",
        "mask_files": ", masks/*.png" if of_set["masks"] else "",
        "mask_words": _mask_words(masks, public=of_set["public_masks"]) if of_set["masks"] else "",
        "height": of_set["size"][0],
        "width": of_set["size"][1],
        "sites": len(sites),
        "site_names": ", ".join(sites),
        "declared": ", ".join(number(site["patients_declared"]) for site in sites.values()),
        "public": "They were simulated, on public data." if content["simulation"] and public else "",
        "unit": promise["unit"],
        "one_unit": one(promise["unit"]),
        "epsilon": number(promise["epsilon"]),
        "epsilon_sum": number(promise["epsilon_sum"]),
        "delta": number(promise["delta"]),
        "risk": promise["words"],
        "mechanism": promise["mechanism"],
        "public_people": _public_people(promise["public_images"]),
        "coverage": number(rows[0]["value"]),
        "worth": "\n".join(f"- {row['name']} {number(row['value'])}: {row['words']}" for row in rows),
        "limits": LIMITS,
        "unknown": UNKNOWN,
        "version": content["versions"]["fedmedgen"],
        "commit": content["versions"]["commit"] or "unknown",
        "fingerprint": content["key"]["fingerprint"],
    }


def _mask_words(masks: str, *, public: bool) -> str:
    if public:
        return f", and the mask of {masks} of the public image that is nearest to what was drawn"
    return f", and a mask of {masks} drawn together with the image"


def _public_people(words: str) -> str:
    return (
        ""
        if words == "none"
        else f"Public images were used beside the sites' own, and no epsilon covers them: {words}."
    )
