"""The kernel's door: FUSE requests in, replies out.

The only package that knows pyfuse3 and trio. `loop` is the session loop, `operations` the thin adapter between the
kernel's numbers and bytes and the synchronous filesystem below, `server` the mount with its options, signals and timers.

Locking rule: one trio thread runs every handler. The filesystem below is called from that thread only; a handler gives
it up (`await`) only where waiting is the point: for a commit, for a worker thread.
"""
