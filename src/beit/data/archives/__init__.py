"""Archives of images, read in place: tar shards and zip files; also folders in remote stores."""
