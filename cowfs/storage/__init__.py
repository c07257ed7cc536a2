"""Blocks that survive a crash: devices, slots, checked block I/O, the space map, transactions and block trees.

Read from the bottom up: `device` (bytes), `superblock` (slots), `blockio` (checked blocks), `pagedtree` (our unshared
system trees), `spacemap` (which block is free, how many parents it has), `transaction` (shadow: the only door to
writeable blocks), `reclaim` (subtrees waiting to be dropped), `blocktree` (trees that may be shared), `volume` (opening,
commit), `mkvolume` (a new volume).
"""
