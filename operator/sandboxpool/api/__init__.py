"""The API: models of the kinds, reasons, and the names of labels and annotations."""
