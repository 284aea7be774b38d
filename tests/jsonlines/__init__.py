"""A kind of data that diffeo does not know: points, one JSON array of numbers a line. One folder, and one line."""
