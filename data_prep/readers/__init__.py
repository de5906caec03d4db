"""Raw k-space files of several formats, all read into one RawScan."""

from data_prep.readers.raw import RawScan
from data_prep.readers.registry import RAW_SUFFIXES, raw_files, read_middle_slice, read_raw, read_sampling

__all__ = ["RAW_SUFFIXES", "RawScan", "raw_files", "read_middle_slice", "read_raw", "read_sampling"]
