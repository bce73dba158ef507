"""The mask of a synthetic radiograph as a DICOM Segmentation (SEG) that refers to the picture.

One binary segment for each mask class but the background. The algorithm type is AUTOMATIC, with the generator named:
nobody outlined anything in this picture. The two are drawn together, or the generator takes the mask, as it stands, of
the public image nearest to what it draws (`Origin.public_masks`); the content's description says which. A class that
SNOMED CT's part of DICOM names has that code; any other has one of the private scheme 99FEDMEDGEN.

**Source** DICOM PS3.3 A.51 (Segmentation IOD)
"""

import warnings
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from fedmedgen import __version__
from fedmedgen.data.cases import MaskArray
from fedmedgen.emission.secondary_capture import MAKER, Origin, mark, text

PRIVATE_SCHEME = "99FEDMEDGEN"
SERIES_NUMBER = 2  # the picture's is 1
CODE_LENGTH = 16  # characters of SH
TOGETHER, NEAREST = "Mask drawn together with its picture", "Mask of the public image nearest to its picture"
_CATEGORIES = codes.cid7150
KNOWN: dict[str, tuple[Code, Code]] = {
    **{
        name: (_CATEGORIES.AnatomicalStructure, code)
        for name, code in {
            "lung": codes.SCT.Lung,
            "heart": codes.SCT.Heart,
            "clavicle": codes.SCT.Clavicle,
            "rib": codes.SCT.Rib,
            "tooth": codes.SCT.Tooth,
            "teeth": codes.SCT.Tooth,
        }.items()
    },
    "lesion": (_CATEGORIES.MorphologicallyAbnormalStructure, codes.SCT.Lesion),
    "nodule": (_CATEGORIES.MorphologicallyAbnormalStructure, codes.SCT.Nodule),
}


def segmentation_object(mask: MaskArray, picture: Dataset, mask_classes: Sequence[str], origin: Origin) -> Dataset:
    """The mask ``[H, W]``, values as `mask_classes` (background first), as a SEG of the picture's study."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*empty.*")  # a mask of background alone is no fault
        file = Segmentation(
            source_images=[picture],
            pixel_array=np.ascontiguousarray(mask)[None],
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(number, name, origin) for number, name in enumerate(mask_classes) if number],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=__version__,
            device_serial_number=origin.generator or "none",
            content_label="SYNTHETIC",
            content_description=NEAREST if origin.public_masks else TOGETHER,
            content_creator_name=f"{MAKER}^",
        )
    file.SeriesDescription = "Synthetic: mask"
    if origin.body_part:
        file.BodyPartExamined = origin.body_part
    mark(file, origin)
    return file


def _segment(number: int, name: str, origin: Origin) -> SegmentDescription:
    category, kind = codes_of(name)
    algorithm = AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        parameters={key: value for key, value in (("seed", origin.seed), ("generator", origin.generator)) if value}
        or None,
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=text(name) or f"class {number}",
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )


def codes_of(name: str) -> tuple[Code, Code]:
    """Category and type of a structure, by its name in the singular or the plural."""
    key = name.strip().lower()
    found = KNOWN.get(key) or KNOWN.get(key.removesuffix("s"))
    if found:
        return found
    own = text(name) or "unnamed"
    short = own if len(own) <= CODE_LENGTH else f"{own[: CODE_LENGTH - 7]}-{sha256(own.encode()).hexdigest()[:6]}"
    return _CATEGORIES.SpatialAndRelationalConcept, Code(short, PRIVATE_SCHEME, own)
