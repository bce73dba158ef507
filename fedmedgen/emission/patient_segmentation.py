"""The mask of a patient's radiograph as a DICOM Segmentation (SEG) that refers to the file it was made from.

Patient and study stand in it as the source has them, even where the source departs from the standard; the series and
the object are new. The algorithm type is AUTOMATIC, with this program, its version and the segmenter's hash.

**Source** DICOM PS3.3 A.51 (Segmentation IOD)
"""

import logging
import warnings
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from highdicom import AlgorithmIdentificationSequence
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from fedmedgen import __version__
from fedmedgen.data.cases import MaskArray
from fedmedgen.data.rejection import Unusable
from fedmedgen.emission.secondary_capture import MAKER, text
from fedmedgen.emission.segmentation_object import codes_of

SERIES_NUMBER = 1000  # above those that machines count up to
IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
IDENTITY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
CARRIED = (*IDENTITY, "BodyPartExamined", "SyntheticData")  # a mask of what no patient has is of no patient either
PLACES = ("ImagePositionPatient", "ImageOrientationPatient")  # of slices; a radiograph is none
STAND_IN = SecondaryCaptureImageStorage
_log = logging.getLogger(__name__)


def patient_segmentation(mask: MaskArray, source: Path, mask_classes: Sequence[str], segmenter: str) -> Dataset:
    """The mask ``[H, W]`` of the radiograph in the file `source`, made by the segmenter of this hash.

    **Raises** `Unusable` if the source lacks what a reference to it needs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source's departures from the standard, and of a mask without a pixel
        header = pydicom.dcmread(source, stop_before_pixels=True)
        for name in IDENTIFIERS:
            if not header.get(name):
                raise Unusable("dicom-attribute", name=name)
        carried, own = [deepcopy(header[name]) for name in CARRIED if name in header], header.SOPClassUID
        try:
            file = _segmentation(mask, _plain(header), mask_classes, segmenter)
        except Exception as error:  # highdicom raises whatever an odd header makes it trip over
            _log.debug("%s: %r", source.name, error)
            raise Unusable("dicom-unreadable") from None
        for element in carried:
            file[element.tag] = element
        file.walk(partial(_refer_to, own))
    return file


def _refer_to(own: str, where: Dataset, element: DataElement) -> None:
    """The source's own class where the stand-in's is named."""
    if element.keyword == "ReferencedSOPClassUID" and element.value == STAND_IN:
        where.ReferencedSOPClassUID = own


def _plain(header: Dataset) -> Dataset:
    """The header, less what highdicom would refuse it for: patient and study blank, no place in space.

    Of one frame and of a class that has no more, whatever the source's own: XA and RF may have several.
    """
    header.SOPClassUID = STAND_IN
    if "NumberOfFrames" in header:
        del header.NumberOfFrames
    for name in PLACES:
        if name in header:
            del header[name]
    for name in IDENTITY:
        setattr(header, name, "")
    if not header.get("Modality"):
        header.Modality = "OT"
    spacing = header.get("PixelSpacing")
    if "PixelSpacing" in header and not (spacing and len(spacing) == 2 and all(side > 0 for side in spacing)):
        del header.PixelSpacing
    return header


def _segmentation(mask: MaskArray, header: Dataset, mask_classes: Sequence[str], segmenter: str) -> Segmentation:
    return Segmentation(
        source_images=[header],
        pixel_array=np.ascontiguousarray(mask)[None],
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, name, segmenter) for number, name in enumerate(mask_classes) if number],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MAKER,
        manufacturer_model_name=MAKER,
        software_versions=__version__,
        device_serial_number=segmenter or "none",
        content_label="AUTOMATIC",
        content_description="Mask by a model, not reviewed",
        content_creator_name=f"{MAKER}^",
        series_description="Automatic mask, not reviewed, not for diagnosis",
        specific_character_set="ISO_IR 192",
    )


def _segment(number: int, name: str, segmenter: str) -> SegmentDescription:
    category, kind = codes_of(name)
    algorithm = AlgorithmIdentificationSequence(
        name=MAKER,
        family=codes.cid7162.ArtificialIntelligence,
        version=__version__,
        parameters={"segmenter": segmenter} if segmenter else None,
    )
    return SegmentDescription(
        segment_number=number,
        segment_label=text(name) or f"class {number}",
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
