"""Raw files as the formats' own tools write them, for tests of several packages."""

import struct

import numpy as np
from twixtools.mdb import Mdb_local

PROTOCOL = """### ASCCONV BEGIN ###
tProtocolName = "flash"
sKSpace.lBaseResolution = 32
sSliceArray.asSlice[0].dThickness = 3.0
sSliceArray.asSlice[0].dPhaseFOV = 192.0
sSliceArray.asSlice[0].dReadoutFOV = 256.0
sPat.ucRefScanMode = {reference}
sRXSPEC.alDwellTime[0] = {dwell}
{more}### ASCCONV END ###
"""


def measurement(blocks, dwell=10000, oversampling=1, reference=1, more="", patient="", texts=None):
    """A measurement as twixtools writes it, with a header of the few values that a reader needs.

    more     further lines of the protocol
    patient  the patient's identifier
    texts    further strings of the header, by their names
    """
    strings = "".join(f'<ParamString."{name}"> {{ "{text}" }}\n' for name, text in (texts or {}).items())
    buffers = {
        "Config": f'<ParamString."PatientID"> {{ "{patient}" }}\n' + strings,
        "MeasYaps": PROTOCOL.format(dwell=dwell, reference=reference, more=more),
        "Dicom": f'<ParamDouble."flReadoutOSFactor"> {{ <Precision> 6 {oversampling:.1f} }}\n'
        '<ParamString."tPatientName"> { "Doe" }\n' + strings,
    }
    body = b"".join(
        name.encode() + b"\0" + struct.pack("<I", len(text)) + text.encode() for name, text in buffers.items()
    )
    size = max(10240, -(-(8 + len(body)) // 32) * 32)  # shorter headers would be taken for those of VD
    header = struct.pack("<II", size, len(buffers)) + body
    return {"hdr_str": np.frombuffer(header.ljust(size, b"\0"), "S1"), "mdb": blocks}


def line(data, number=0, slice_number=0, average=0, flags=(), center=None, vb=False, **counters):
    """One readout of all coils, (coils, columns)."""
    block = Mdb_local(data, version_is_ve=not vb)
    block.mdh.Counter.Lin, block.mdh.Counter.Sli, block.mdh.Counter.Ave = number, slice_number, average
    block.mdh.CenterCol = data.shape[1] // 2
    block.mdh.CenterLin = center or 0
    for name, value in counters.items():
        setattr(block.mdh.Counter, name, value)
    for flag in ("ONLINE", *flags):
        block.add_flag(flag)
    return block


def write_vb(path, measurement):
    """A VB file from twixtools' own structures; its writer is for VE, and would write the lines' headers twice."""
    with open(path, "wb") as file:
        measurement["hdr_str"].tofile(file)
        for block in measurement["mdb"]:
            for channel in block.data:
                file.write(bytearray(block.mdh) + channel.tobytes())
        end = Mdb_local(version_is_ve=False)
        end.add_flag("ACQEND")
        file.write(bytearray(end.mdh) + end.data)


def lines(kspace, numbers=None, **options):
    numbers = range(kspace.shape[-1]) if numbers is None else numbers
    return [line(kspace[sli, :, :, number], number, sli, **options) for sli in range(len(kspace)) for number in numbers]


def write_cfl(path, array, dims):
    """As BART does: sizes in text, samples in column-major order."""
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, dims))} \n")
    array.reshape(dims, order="F").astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))


def mrd_encoding(
    matrix,
    fov=(256.0, 192.0, 5.0),
    *,
    asked=None,
    asked_fov=None,
    limits=None,
    trajectory="cartesian",
    calibration=None,
):
    """An encoding of an ISMRMRD header.

    asked, asked_fov  matrix and field of view of the image, where they differ
    limits            (minimum, maximum, center) of kspace_encoding_step_1, and of 2, by number
    calibration       mode of parallel imaging's calibration
    """
    from ismrmrd import xsd

    def space(size, lengths):
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(**dict(zip("xyz", size, strict=True))),
            fieldOfView_mm=xsd.fieldOfViewMm(**dict(zip("xyz", lengths, strict=True))),
        )

    def parallel(mode):
        factor = xsd.accelerationFactorType(kspace_encoding_step_1=2, kspace_encoding_step_2=1)
        return xsd.parallelImagingType(accelerationFactor=factor, calibrationMode=xsd.calibrationModeType(mode))

    steps = {
        f"kspace_encoding_step_{number}": xsd.limitType(minimum=least, maximum=largest, center=center)
        for number, (least, largest, center) in (limits or {}).items()
    }
    return xsd.encodingType(
        encodedSpace=space(matrix, fov),
        reconSpace=space(asked or matrix, asked_fov or fov),
        encodingLimits=xsd.encodingLimitsType(**steps),
        trajectory=xsd.trajectoryType(trajectory),
        parallelImaging=parallel(calibration) if calibration else None,
    )


def mrd_header(*encodings, bandwidth=None, protocol="flash"):
    """An ISMRMRD header as ismrmrd writes it, with a patient in it."""
    from ismrmrd import xsd

    header = xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientName="Doe", patientID="P-17", patientGender="F"),
        studyInformation=xsd.studyInformationType(studyID="Doe", referringPhysicianName="Doe"),
        measurementInformation=xsd.measurementInformationType(
            patientPosition=xsd.patientPositionType.HFS, protocolName=protocol, measurementID="Doe"
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            institutionName="Doe", deviceSerialNumber="Doe", relativeReceiverNoiseBandwidth=bandwidth
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123000000),
        encoding=list(encodings),
        userParameters=xsd.userParametersType(
            userParameterString=[xsd.userParameterStringType(name="patient", value="Doe")]
        ),
    )
    return header.toXML()


def mrd_line(data, number=0, partition=0, flags=(), center=None, **fields):
    """One readout of all coils, (coils, samples); fields of its header, those of its counters among them."""
    import ismrmrd

    acquisition = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64))
    acquisition.center_sample = data.shape[1] // 2 if center is None else center
    acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = number, partition
    for name, value in fields.items():
        setattr(acquisition.idx if hasattr(acquisition.idx, name) else acquisition, name, value)
    for flag in flags:
        acquisition.set_flag(getattr(ismrmrd, f"ACQ_{flag}"))
    return acquisition


def mrd_lines(kspace, numbers=None, **options):
    """Lines of (slices, coils, H, W)."""
    numbers = range(kspace.shape[-1]) if numbers is None else numbers
    return [mrd_line(kspace[s, :, :, n], n, slice=s, **options) for s in range(len(kspace)) for n in numbers]


def write_mrd(path, header, acquisitions, group="dataset"):
    """As ismrmrd does."""
    import ismrmrd

    with ismrmrd.Dataset(path, group, mode="a") as dataset:
        dataset.write_xml_header(header)
        for acquisition in acquisitions:
            dataset.append_acquisition(acquisition)
    return path
