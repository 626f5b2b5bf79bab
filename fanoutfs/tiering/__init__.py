"""Tiering, decided: where a file's bytes are (`states`), and where policy wants them (`policy`).

Pure: everything comes in as values.  What moves bytes accordingly is in `core`.
"""
