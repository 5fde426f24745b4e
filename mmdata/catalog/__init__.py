"""Catalog entries and the readers of each published format."""

from mmdata.catalog.entry import Columns, Entry, load_entry
from mmdata.catalog.files import list_files, open_list
from mmdata.catalog.lists import ListFile, Raw, UnreadableError
from mmdata.catalog.rows import Origin, clean_text, is_hex_id, to_rows

__all__ = [
    "Columns", "Entry", "ListFile", "Origin", "Raw", "UnreadableError", "clean_text", "is_hex_id", "list_files", "load_entry",
    "open_list", "to_rows",
]  # fmt: skip
