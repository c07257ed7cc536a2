"""What leaves a volume without a mount: listings, contents, manifests, bodyfiles and whole trees.

For reading evidence as much as backups, so nothing here writes to the image, and nothing believes it: a damaged entry is
reported and passed over, and a volume made to do harm (directories that contain themselves, files that share their blocks
without end) meets a bound that no sound volume comes near (`budget`). Memory is that of one directory on each level of the
path, whatever the tree holds.
"""
