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
### ASCCONV END ###
"""


def measurement(blocks, dwell=10000, oversampling=1, reference=1):
    """A measurement as twixtools writes it, with a header of the few values that a reader needs."""
    buffers = {
        "MeasYaps": PROTOCOL.format(dwell=dwell, reference=reference),
        "Dicom": f'<ParamDouble."flReadoutOSFactor"> {{ <Precision> 6 {oversampling:.1f} }}\n'
        '<ParamString."tPatientName"> { "Doe" }\n',
    }
    body = b"".join(
        name.encode() + b"\0" + struct.pack("<I", len(text)) + text.encode() for name, text in buffers.items()
    )
    size = -(-(8 + len(body)) // 32) * 32
    header = struct.pack("<II", size, len(buffers)) + body
    return {"hdr_str": np.frombuffer(header.ljust(size, b"\0"), "S1"), "mdb": blocks}


def line(data, number=0, slice_number=0, average=0, flags=(), center=None, **counters):
    """One readout of all coils, (coils, columns)."""
    block = Mdb_local(data)
    block.mdh.Counter.Lin, block.mdh.Counter.Sli, block.mdh.Counter.Ave = number, slice_number, average
    block.mdh.CenterCol = data.shape[1] // 2
    block.mdh.CenterLin = center or 0
    for name, value in counters.items():
        setattr(block.mdh.Counter, name, value)
    for flag in ("ONLINE", *flags):
        block.add_flag(flag)
    return block


def lines(kspace, numbers=None, **options):
    numbers = range(kspace.shape[-1]) if numbers is None else numbers
    return [line(kspace[sli, :, :, number], number, sli, **options) for sli in range(len(kspace)) for number in numbers]


def write_cfl(path, array, dims):
    """As BART does: sizes in text, samples in column-major order."""
    path.with_suffix(".hdr").write_text(f"# Dimensions\n{' '.join(map(str, dims))} \n")
    array.reshape(dims, order="F").astype(np.complex64).ravel(order="F").tofile(path.with_suffix(".cfl"))
