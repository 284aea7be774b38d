"""The kinds of data: tables, images and audio, each in a folder of its own."""
