"""A synthetic radiograph as a DICOM Secondary Capture that says it is synthetic.

What tells a person or a program that no patient stands behind it, and where it comes from:

- SyntheticData (0008,001C) YES and ConversionType (0008,0064) SYN: the standard's own marks.
- ImageComments (0020,4000) and SeriesDescription (0008,103E): "Synthetic" and the class in words, as viewers and
  worklists show them.
- ContributingEquipmentSequence (0018,A001), purpose "Synthesizing Equipment": this program, its version, the study,
  the seed and the generator's hash. It belongs to SOP Common, so the masks' objects carry it too.
- A private block (0011,xx01-04) of the creator FEDMEDGEN: class, its number, seed and generator, for programs. A
  Secondary Capture has no Acquisition Context, and a code of a diagnosis would claim a finding in a patient.

Modality is OT: CR or DX would claim that a machine took the picture. There is no date and no pixel spacing: none is
known. PatientID is the picture's name in its set.

**Source** DICOM PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6.1 (SC Equipment), C.12.1 (SOP Common)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from fedmedgen import __version__
from fedmedgen.data.cases import MaskArray

MAKER = "fedmedgen"
PRIVATE_GROUP, PRIVATE_CREATOR = 0x0011, "FEDMEDGEN"
LONG_STRING, SHORT_TEXT = 64, 1024  # characters of LO and of ST


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a set comes from, as far as it is known; empty where not."""

    study: str = ""
    seed: str = ""
    generator: str = ""  # hash of its folder
    body_part: str = ""  # BodyPartExamined, as CHEST
    public_masks: bool = False  # each mask is that of the public image nearest to the picture, not drawn with it

    @classmethod
    def of(cls, datasheet: Mapping[str, object]) -> "Origin":
        """What the set's datasheet tells of it."""
        told = {name: datasheet.get(name) for name in ("study", "seed", "generator", "body_part")}
        words = {name: "" if value is None else str(value) for name, value in told.items()}
        return cls(**words, public_masks=bool(datasheet.get("public_masks")))

    @property
    def words(self) -> str:
        """For people, in one line."""
        known = {"study": self.study, "seed": self.seed, "generator SHA-256": self.generator}
        facts = [f"{name} {value}" for name, value in known.items() if value]
        return text(", ".join(["Drawn from a generative model", *facts]), SHORT_TEXT)


def secondary_capture(pixels: MaskArray, name: str, *, label: int | None, class_name: str, origin: Origin) -> Dataset:
    """Grey levels ``[H, W]`` as a Secondary Capture with new UIDs and no patient."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SpecificCharacterSet = "ISO_IR 192"
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, file.file_meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID = generate_uid(), generate_uid()
    file.PatientID, file.PatientName = text(name), "Synthetic^"
    file.PatientBirthDate = file.PatientSex = file.StudyDate = file.StudyTime = ""
    file.StudyID = file.AccessionNumber = file.ReferringPhysicianName = file.PatientOrientation = ""
    file.SeriesNumber = file.InstanceNumber = 1
    file.Modality, file.ConversionType, file.ImageType = "OT", "SYN", ["DERIVED", "SECONDARY"]
    file.BurnedInAnnotation, file.LossyImageCompression = "NO", "00"
    if origin.body_part:
        file.BodyPartExamined = origin.body_part
    _say(file, label, class_name, origin)
    _draw(file, pixels)
    return file


def mark(file: Dataset, origin: Origin) -> None:
    """Say in any object that it is synthetic, and what made it."""
    file.SyntheticData = "YES"
    purpose = Dataset()
    purpose.CodeValue = codes.cid7005.SynthesizingEquipment.value
    purpose.CodingSchemeDesignator = codes.cid7005.SynthesizingEquipment.scheme_designator
    purpose.CodeMeaning = codes.cid7005.SynthesizingEquipment.meaning
    maker = Dataset()
    maker.PurposeOfReferenceCodeSequence = [purpose]
    maker.Manufacturer = maker.ManufacturerModelName = MAKER
    maker.SoftwareVersions, maker.ContributionDescription = __version__, origin.words
    file.ContributingEquipmentSequence = [maker]


def save(file: Dataset, path: Path) -> None:
    """Write the object as a DICOM file."""
    file.save_as(path, enforce_file_format=True)


def text(words: str, most: int = LONG_STRING) -> str:
    """The words without what DICOM's text forbids (backslash, control characters), cut to the length allowed."""
    return "".join("/" if char == "\\" else char for char in words if char.isprintable()).strip()[:most]


def _say(file: Dataset, label: int | None, class_name: str, origin: Origin) -> None:
    mark(file, origin)
    file.Manufacturer = file.ManufacturerModelName = MAKER
    file.SoftwareVersions = __version__
    file.StudyDescription = text(f"Synthetic, {origin.study}" if origin.study else "Synthetic")
    file.SeriesDescription = text(f"Synthetic: {class_name}" if class_name else "Synthetic")
    shown = f" Class: {text(class_name)}." if class_name else ""
    file.ImageComments = f"Synthetic image, of no patient.{shown} {origin.words}."
    block = file.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
    told = {1: text(class_name), 2: "" if label is None else str(label), 3: origin.seed, 4: origin.generator}
    for place, value in told.items():
        if value:
            block.add_new(place, "LO", value)


def _draw(file: Dataset, pixels: MaskArray) -> None:
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = pixels.shape
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.WindowCenter, file.WindowWidth = 128, 256  # all grey levels as they are
    file.set_pixel_data(pixels, "MONOCHROME2", 8, generate_instance_uid=False)
