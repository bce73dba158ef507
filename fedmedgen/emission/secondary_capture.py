"""A synthetic radiograph as a DICOM Secondary Capture that says it is synthetic."""

from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from fedmedgen.data.cases import MaskArray


def write_dicom(pixels: MaskArray, path: Path) -> None:
    """Write grey levels ``[H, W]`` with new UIDs, SyntheticData YES and ConversionType SYN, and no patient."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID = generate_uid(), generate_uid()
    file.PatientID, file.PatientName = path.stem, "Synthetic"
    file.PatientBirthDate = file.PatientSex = file.StudyDate = file.StudyTime = ""
    file.StudyID = file.AccessionNumber = file.ReferringPhysicianName = ""
    file.SeriesNumber = file.InstanceNumber = "1"
    file.Modality, file.ConversionType, file.SyntheticData = "OT", "SYN", "YES"
    file.ImageType = ["DERIVED", "SECONDARY"]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = pixels.shape
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.set_pixel_data(pixels, "MONOCHROME2", 8, generate_instance_uid=False)
    file.save_as(path, enforce_file_format=True)
