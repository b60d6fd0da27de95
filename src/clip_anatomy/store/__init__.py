"""The parts of many images on disk: format, writer, index, verify."""
