"""Tables: files, frames and arrays of rows and columns."""
