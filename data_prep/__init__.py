"""Stage 1: from raw k-space files to prepared scans."""
