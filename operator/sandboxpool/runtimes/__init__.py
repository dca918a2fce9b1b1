"""Runtime truth: RuntimeClass and nodes in, a verdict out. Pure: no input, no output, no clock."""
