"""The patient's identifier: a hash of it under the site's key passes on, the identifier never does.

With a key in the environment variable MRIGSURE_SITE_KEY all scans of a patient get the same hash, so that they can be
kept together, and nobody without the key can tell whose they are. Without a key, or where the file names no patient,
there is no hash.
"""

import hashlib
import hmac
import os
from pathlib import Path

from data_prep.readers.fastmri import fastmri_patient
from data_prep.readers.ismrmrd import is_ismrmrd, ismrmrd_patient
from data_prep.readers.twix import twix_patient

SITE_KEY = "MRIGSURE_SITE_KEY"
_OF_SUFFIX = {".dat": twix_patient, ".mrd": ismrmrd_patient}


def patient_hash(identifier: str) -> str:
    """HMAC-SHA-256 of the identifier, in hexadecimal; "" without an identifier or without the site's key."""
    key = os.environ.get(SITE_KEY, "")
    return hmac.new(key.encode(), identifier.encode(), hashlib.sha256).hexdigest() if key and identifier else ""


def read_patient(path) -> str:
    """The identifier as RawScan.patient has it, from the headers alone; "" for formats that have no place for one."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".h5":
        return ismrmrd_patient(path) if is_ismrmrd(path) else fastmri_patient(path)
    return _OF_SUFFIX[suffix](path) if suffix in _OF_SUFFIX else ""
