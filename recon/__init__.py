"""Stage 3: from prepared scans and a prior to images, uncertainty and metrics."""
