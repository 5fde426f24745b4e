"""Catalog entries and the readers of each published format."""

from mmdata.catalog.entry import Columns, Entry, load_entry
from mmdata.catalog.files import Slice, count_rows, list_files, read_raw
from mmdata.catalog.rows import to_rows

__all__ = ["Columns", "Entry", "Slice", "count_rows", "list_files", "load_entry", "read_raw", "to_rows"]
