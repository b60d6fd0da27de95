"""The parts of many images on disk: index, writer, blocks, rows, verify."""
