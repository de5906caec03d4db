"""Identifiers planted in every place of every format's header reach nothing that `mrigsure prepare` writes or says."""

import hashlib
import hmac
import importlib.util
import json

import h5py
import numpy as np
import pytest
import scipy.io
import twixtools
from raw_formats import (
    line,
    lines,
    measurement,
    mrd_encoding,
    mrd_header,
    mrd_lines,
    write_cfl,
    write_mrd,
    write_vb,
)

from data_prep.patient import SITE_KEY, patient_hash, read_patient
from data_prep.readers import read_raw
from mrigsure.cli import main
from mrigsure.fastmri_files import make_header, write_fastmri

KEY = "the site's own secret 8d1f"
NAME, PATIENT = "Zyxwelling^Quillemina", "PID-48151623"
BIRTH, ACCESSION = "19530417", "ACC-99887766"
STUDY, SITE = "1.2.840.999999.7.31415.926", "Springfielder Klinikum"
SERIAL, PHYSICIAN = "SN-55443322", "Frankenstone^Viktoria"
PLANTED = (NAME, PATIENT, BIRTH, ACCESSION, STUDY, SITE, SERIAL, PHYSICIAN)
BIRTH_ISO = "1953-04-17"
SECRETS = (*PLANTED, BIRTH_ISO, *NAME.split("^"), *PHYSICIAN.split("^"), "Springfielder", "48151623", KEY)


def _header():
    """An ISMRMRD header with identifiers in every element that takes one, in comments, attributes and instructions."""
    plain = make_header((32, 24), (8.0, 8.0, 3.0), coils=3)
    root, rest = plain.split("<acquisitionSystemInformation>")
    before = (
        f"<!-- {NAME} --><?patient {PATIENT}?>"
        f"<subjectInformation><patientName>{NAME}</patientName><patientID>{PATIENT}</patientID>"
        f"<patientBirthdate>{BIRTH_ISO}</patientBirthdate></subjectInformation>"
        f"<studyInformation><studyDate>{BIRTH_ISO}</studyDate><studyID>{STUDY}</studyID>"
        f"<accessionNumber>{ACCESSION}</accessionNumber><referringPhysicianName>{PHYSICIAN}</referringPhysicianName>"
        f"<studyDescription>{NAME}</studyDescription><studyInstanceUID>{STUDY}</studyInstanceUID>"
        f"<bodyPartExamined>{NAME}</bodyPartExamined></studyInformation>"
        f"<measurementInformation><measurementID>{SERIAL}</measurementID><patientPosition>HFS</patientPosition>"
        f"<protocolName>t1 {NAME}</protocolName><seriesDescription>{PATIENT}</seriesDescription>"
        f"<seriesInstanceUIDRoot>{STUDY}</seriesInstanceUIDRoot><frameOfReferenceUID>{STUDY}</frameOfReferenceUID>"
        f"</measurementInformation><acquisitionSystemInformation><institutionName>{SITE}</institutionName>"
        f"<stationName>{SITE}</stationName><deviceID>{SERIAL}</deviceID>"
        f"<deviceSerialNumber>{SERIAL}</deviceSerialNumber>"
        f"<coilLabel><coilNumber>0</coilNumber><coilName>{SERIAL}</coilName></coilLabel>"
    )
    described = (
        f"<trajectoryDescription><identifier>{PATIENT}</identifier><comment>{NAME}</comment></trajectoryDescription>"
        "</encoding>"
    )
    after = (
        f"<userParameters><userParameterString><name>patient</name><value>{NAME}</value></userParameterString>"
        f"<userParameterBase64><name>{PATIENT}</name><value>{SERIAL}</value></userParameterBase64></userParameters>"
        "</ismrmrdHeader>"
    )
    xml = root + before + rest.replace("</encoding>", described).replace("</ismrmrdHeader>", after)
    return xml.replace("<encodedSpace>", f'<encodedSpace patient="{NAME}">')


def _planted_attributes(file):
    """An identifier in an attribute of the file and of every dataset, and in datasets of their own."""
    for number, text in enumerate(PLANTED):
        file.attrs[f"note_{number}"] = text
        for name in list(file):
            if isinstance(file[name], h5py.Dataset):
                file[name].attrs[f"note_{number}"] = text
    file["patient_name"] = NAME
    file.create_group(f"study {STUDY}")["patient"] = PATIENT


def _fastmri(path, kspace):
    attributes = {"patient_id": PATIENT, "acquisition": f"AXT2 {NAME}"}
    write_fastmri(path, kspace, header=_header(), attributes=attributes)
    with h5py.File(path, "r+") as file:
        _planted_attributes(file)


def _ismrmrd(path, kspace):
    header = mrd_header(mrd_encoding((32, 24, 1)), protocol=f"t1 {NAME}")
    start, end = header.index("<subjectInformation>"), header.index("<experimentalConditions>")
    full = _header()
    planted = full[full.index("<subjectInformation>") : full.index("<experimentalConditions>")]
    header = header[:start] + planted + header[end:]
    header = header.replace("<encoding>", f"<!-- {NAME} --><encoding>", 1)
    write_mrd(path, header, mrd_lines(kspace))
    with h5py.File(path, "r+") as file:
        for number, text in enumerate(PLANTED):
            file.attrs[f"note_{number}"] = file["dataset"].attrs[f"note_{number}"] = text


_TWIX_TEXTS = {
    "tPatientName": NAME,
    "PatientName": NAME,
    "PatientsName": NAME,
    "PatientBirthDay": BIRTH,
    "PatientLOID": PATIENT,
    "Patient": PATIENT,
    "AccessionNumber": ACCESSION,
    "StudyLOID": STUDY,
    "StudyInstanceUID": STUDY,
    "tStudyDescription": NAME,
    "InstitutionName": SITE,
    "InstitutionAddress": SITE,
    "HospitalName": SITE,
    "DeviceSerialNumber": SERIAL,
    "tPerfPhysiciansName": PHYSICIAN,
}


def _twix_measurement(blocks):
    free_text = f'tProtocolName = "t1_{NAME}"\ntReferenceImage0 = "{STUDY}"\n'
    return measurement(blocks, patient=PATIENT, texts=_TWIX_TEXTS, more=free_text)


def _twix(path, kspace):
    one = _twix_measurement(lines(kspace))
    raid = np.zeros((), twixtools.hdr_def.MrParcRaidFileEntry)
    raid["patName_"], raid["protName_"] = NAME.encode(), PATIENT.encode()
    noise = _twix_measurement([line(kspace[0, :, :, 0], flags=("NOISEADJSCAN",))])
    twixtools.write_twix([noise | {"raidfile_hdr": raid}, one | {"raidfile_hdr": raid}], str(path))


def _twix_vb(path, kspace):
    write_vb(path, _twix_measurement(lines(kspace, vb=True)))


def _mat5(path, kspace):
    notes = {f"note_{number}": text for number, text in enumerate(PLANTED)}
    scipy.io.savemat(path, {"kspace": kspace.transpose(2, 3, 1, 0), "patient": {"name": NAME}} | notes)
    content = bytearray(path.read_bytes())
    content[:116] = f"MATLAB 5.0 MAT-file {NAME} {PATIENT}".encode().ljust(116)
    path.write_bytes(content)


def _mat73(path, kspace):
    stored = np.empty(kspace.shape[:2] + kspace.shape[:1:-1], [("real", "<f4"), ("imag", "<f4")])
    stored["real"], stored["imag"] = kspace.swapaxes(2, 3).real, kspace.swapaxes(2, 3).imag
    with h5py.File(path, "w", userblock_size=512) as file:
        file["kspace"] = stored
        file["kspace"].attrs["MATLAB_class"] = np.bytes_("single")
        _planted_attributes(file)
    with open(path, "r+b") as file:
        file.write(f"MATLAB 7.3 MAT-file {NAME} {PATIENT}".encode().ljust(128))


def _npz(path, kspace):
    notes = {f"note_{number}": np.array(text) for number, text in enumerate(PLANTED)}
    np.savez(path, kspace=kspace, **notes)


def _npy(path, kspace):
    np.save(path, kspace)


def _bart(path, kspace):
    slices, coils, height, width = kspace.shape
    array = np.zeros((height, width, 1, coils, *(1,) * 9, slices, 1, 1), np.complex64)
    array[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, :, 0, 0] = kspace.transpose(2, 3, 1, 0)
    write_cfl(path, array, array.shape)
    header = path.with_suffix(".hdr")
    comments = "".join(f"# Note\n{text}\n" for text in PLANTED)
    header.write_text(
        f"{header.read_text()}# Command\ntwixread {NAME}\n# Files\n>{PATIENT}\n# Creator\n{SITE}\n{comments}"
    )


FORMATS = {
    "fastmri.h5": _fastmri,
    "lines.h5": _ismrmrd,
    "lines.mrd": _ismrmrd,
    "ve.dat": _twix,
    "vb.dat": _twix_vb,
    "five.mat": _mat5,
    "seven.mat": _mat73,
    "arrays.npz": _npz,
    "array.npy": _npy,
    "bart.cfl": _bart,
}
NAMING = ("fastmri.h5", "lines.h5", "lines.mrd", "ve.dat", "vb.dat")  # formats with a place for the identifier


def _everything_written(folder):
    """Every file's bytes; of HDF5 files also names, attributes and the datasets' content, uncompressed."""
    for path in sorted(folder.rglob("*")):
        yield path.name, path.name.encode()
        if path.is_file():
            yield path.name, path.read_bytes()
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                parts = []
                file.visititems(lambda name, item, parts=parts: parts.append((name, item)))
                for name, item in [("/", file), *parts]:
                    yield f"{path.name}:{name}", name.encode()
                    for key, value in item.attrs.items():
                        yield f"{path.name}:{name}@{key}", f"{key} {value}".encode()
                    if isinstance(item, h5py.Dataset):
                        value = item[()]
                        yield f"{path.name}:{name}", value.tobytes() if isinstance(value, np.ndarray) else bytes(value)


def _leaks(named_contents):
    found = []
    for name, content in named_contents:
        lowered = content.lower()
        for secret in SECRETS:
            if any(secret.lower().encode(code) in lowered for code in ("utf-8", "utf-16-le", "utf-32-le")):
                found.append((name, secret))
    return found


@pytest.fixture
def scan(tmp_path, make_kspace):
    """Write a scan of a format into a folder named after the patient."""

    def write(name, seed=0):
        path = tmp_path / NAME / name
        path.parent.mkdir(exist_ok=True)
        FORMATS[name](path, make_kspace((32, 24), coils=3, slices=2, seed=seed))
        return path

    return write


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_planted_reaches_no_file_and_no_message(name, scan, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv(SITE_KEY, KEY)
    path, out = scan(name), tmp_path / "out"
    if name != "array.npy":  # which has room for nothing
        assert _leaks([(path.name, half.read_bytes()) for half in path.parent.iterdir()])
    monkeypatch.chdir(path.parent)
    previews = ["--previews"] if importlib.util.find_spec("data_prep.preview") else []
    assert main(["prepare", path.name, str(out), *previews]) == 0
    assert main(["inspect", path.name]) == 0
    assert main(["inspect", str(out / f"{path.stem}.h5")]) == 0
    said = capfd.readouterr()
    contents = list(_everything_written(out))
    assert {f"{path.stem}.h5", "manifest.json"} <= {entry[0] for entry in contents}
    assert _leaks([*contents, ("stdout", said.out.encode()), ("stderr", said.err.encode())]) == []


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_name_nobody_in_the_error(name, scan, tmp_path, capfd, monkeypatch):
    path = scan(name)
    content = path.read_bytes()
    monkeypatch.chdir(path.parent)
    for size in (len(content) // 2, len(content) * 9 // 10):
        path.write_bytes(content[:size])
        assert main(["prepare", path.name, str(tmp_path / "out")]) != 0
    if path.suffix == ".h5" and name.startswith("fastmri"):
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            del file["ismrmrd_header"]
            file["ismrmrd_header"] = f"<patient name='{NAME}' <{PATIENT}>"
        assert main(["prepare", path.name, str(tmp_path / "out")]) == 2
    said = capfd.readouterr()
    written = _everything_written(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert _leaks([*written, ("stdout", said.out.encode()), ("stderr", said.err.encode())]) == []


def test_warnings_kept_in_the_outputs_name_no_folder(scan, tmp_path, monkeypatch):
    path, out = scan("array.npy"), tmp_path / "out"
    kspace = np.load(path)
    kspace[..., ::2] = 0  # no calibration region: a warning
    np.save(path, kspace)
    assert main(["prepare", str(path), str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["files"][0]["warnings"]
    assert _leaks(_everything_written(out)) == []


@pytest.mark.parametrize("name", FORMATS)
def test_patient_hash_is_the_keyed_hash_of_the_identifier(name, scan, tmp_path, monkeypatch):
    monkeypatch.setenv(SITE_KEY, KEY)
    path, out = scan(name), tmp_path / "out"
    expected = hmac.new(KEY.encode(), PATIENT.encode(), hashlib.sha256).hexdigest() if name in NAMING else ""
    assert read_raw(path).patient == read_patient(path) == (PATIENT if name in NAMING else "")
    assert PATIENT not in repr(read_raw(path))
    assert main(["prepare", str(path), str(out)]) == 0
    with h5py.File(out / f"{path.stem}.h5") as file:
        assert file.attrs["patient_hash"] == expected


def test_scans_of_a_patient_share_a_hash_that_only_the_key_gives(monkeypatch):
    monkeypatch.setenv(SITE_KEY, KEY)
    first = patient_hash(PATIENT)
    assert first == patient_hash(PATIENT) != patient_hash(PATIENT + "0")
    assert patient_hash("") == ""
    monkeypatch.setenv(SITE_KEY, "another key")
    assert patient_hash(PATIENT) != first
    monkeypatch.delenv(SITE_KEY)
    assert patient_hash(PATIENT) == ""


def test_an_operators_text_is_kept_unless_it_names_the_patient(scan, tmp_path):
    path = scan("fastmri.h5")
    assert read_raw(path).acquisition == ""
    with h5py.File(path, "r+") as file:
        file.attrs["acquisition"] = "AXT2"
    assert read_raw(path).acquisition == "AXT2"
