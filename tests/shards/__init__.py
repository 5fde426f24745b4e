"""Foreign tars as corpora, corpora cut anew, tars without an index."""
