"""What the bytes are: record declarations, the format's constants, checks and geometry. Pure: no I/O, no state.

Nobody outside this package writes a struct code or a byte offset. `docs/FORMAT.md` describes the same bytes in words; a
test holds the two together.
"""
