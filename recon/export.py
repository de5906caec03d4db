"""`mrigsure export`: reconstructions as NIfTI, DICOM or PNG, in the raw files' units, for other programs.

OUT/NAME_KIND.nii.gz, the folder OUT/NAME_KIND of .dcm files, OUT/NAME_KIND.png; KIND is magnitude, phase or std.
"""

import warnings
from pathlib import Path

from mrigsure.errors import InputError, ScanWarning
from mrigsure.progress import say
from mrigsure.scan import prepared_files
from mrigsure.settings import ExportSettings
from recon.dicom import write_dicom
from recon.image_volume import read_image
from recon.nifti import write_nifti
from recon.sheet import write_sheet

_ENDINGS = {"nifti": ".nii.gz", "dicom": "", "png": ".png"}
_WITHOUT = {
    "nifti": "the NIfTI file says so in its codes",
    "dicom": "DICOM is written as Secondary Capture",
    "png": "the PNG says so",
}


def export(settings: ExportSettings) -> list[Path]:
    """Write every kind of image of every reconstruction in every format of `settings`; returns files and folders.

    A ScanWarning says what a source does not state about sizes and orientation; nothing is invented.
    Raises InputError for a file that is no reconstruction or lacks what was asked for; what is written is whole.
    """
    paths = prepared_files(settings.reconstructions)
    _check_names(paths)
    written = []
    for path in paths:
        for kind in settings.image:
            volume = read_image(path, kind)
            for form in settings.format:
                target = Path(settings.out) / f"{path.stem}_{kind}{_ENDINGS[form]}"
                if form == "nifti":
                    write_nifti(target, volume)
                elif form == "dicom":
                    write_dicom(target, volume)
                else:
                    write_sheet(target, volume, path.stem)
                written.append(target)
            if volume.unknown:
                how = "; ".join(_WITHOUT[form] for form in settings.format)
                warnings.warn(f"{path}: the source states {volume.unknown}; {how}", ScanWarning, stacklevel=2)
    say(f"{len(written)} written to {settings.out}, not for diagnosis")
    return written


def _check_names(paths):
    first = {}
    for path in paths:
        if path.stem in first:
            expected = "reconstructions of different names: one output each"
            raise InputError(path, f"the name of {first[path.stem]} again", expected)
        first[path.stem] = path
